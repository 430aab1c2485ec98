"""The rules of the embedded teacher and judge. They know words, not people: a stand-in that makes the chain run
anywhere."""
