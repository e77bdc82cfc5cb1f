"""Pages and API of benchmarks."""

from fastapi import APIRouter

router = APIRouter()
