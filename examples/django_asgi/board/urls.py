from django.urls import path

from board import views

urlpatterns = [
    path("messages", views.messages),
    path("messages/<text>", views.post),
    path("live", views.live),
    path("export", views.export),
    path("count", views.count),
    path("lanes", views.lanes),
]
