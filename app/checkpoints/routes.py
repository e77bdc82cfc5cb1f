"""Pages and API of checkpoints."""

from fastapi import APIRouter

router = APIRouter()
