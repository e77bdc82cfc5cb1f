"""Pages and API of review."""

from fastapi import APIRouter

router = APIRouter()
