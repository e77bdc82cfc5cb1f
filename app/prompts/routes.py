"""Pages and API of prompts."""

from fastapi import APIRouter

router = APIRouter()
