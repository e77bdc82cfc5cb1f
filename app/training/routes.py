"""Pages and API of training."""

from fastapi import APIRouter

router = APIRouter()
