"""Pages and API of report."""

from fastapi import APIRouter

router = APIRouter()
