"""Pages and API of judging."""

from fastapi import APIRouter

router = APIRouter()
