"""Pages and API of constitutions."""

from fastapi import APIRouter

router = APIRouter()
