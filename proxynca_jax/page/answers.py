"""What the API answers, as types: FastAPI makes its schema of them."""

from pydantic import BaseModel, Field


class Found(BaseModel):
    """An image of the index."""

    id: str = Field(description="digest of the file's content, for /api/similar, /thumbnail and /image")
    score: float = Field(description="cosine similarity to the query, -1 to 1")
    label: str
    path: str = Field(description="of the file, on the server")


class Answer(BaseModel):
    """The most similar images, the most similar first."""

    matches: list[Found]


class Label(BaseModel):
    """A label of the index."""

    label: str
    images: int


class OperatingPoint(BaseModel):
    """A threshold of the score that was measured."""

    far: float = Field(description="share of pairs of different labels that score at least the threshold, 0 to 1")
    threshold: float


class About(BaseModel):
    """The index."""

    images: int
    model: str
    operating_points: list[OperatingPoint] = Field(description="empty if none were measured")
    max_bytes: int = Field(description="of a photograph to search for")


class Fault(BaseModel):
    """Why there is no answer."""

    error: str
