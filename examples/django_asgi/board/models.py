from django.db import models


class Message(models.Model):
    text = models.TextField()
    answers = models.IntegerField(default=0)
