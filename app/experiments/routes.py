"""Pages and API of experiments."""

from fastapi import APIRouter

router = APIRouter()
