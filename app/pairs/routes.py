"""Pages and API of pairs."""

from fastapi import APIRouter

router = APIRouter()
