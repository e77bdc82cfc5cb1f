"""Pages and API of grading."""

from fastapi import APIRouter

router = APIRouter()
