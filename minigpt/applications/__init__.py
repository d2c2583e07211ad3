"""What models are for. A table says which application learns from which kind of data."""

from minigpt.messages import look_up

APPLICATIONS = {
    "text": "minigpt.applications.writing:Writing",
    "task": "minigpt.applications.answering:Answering",
    "image": "minigpt.applications.classifying:Classifying",
    "sound": "minigpt.applications.classifying:Classifying",
    "table": "minigpt.applications.classifying:Classifying",
}


def application_class(kind):
    """The application for data of this kind (see datasets/catalogue.py)."""
    return look_up(APPLICATIONS, kind, "application")
