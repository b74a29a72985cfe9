from django.urls import path

from shop import views

urlpatterns = [
    path("orders", views.orders),
    path("orders/<item>", views.buy),
    path("ship", views.ship_all),
    path("mail", views.mail),
]
