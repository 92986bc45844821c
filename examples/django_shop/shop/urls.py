"""The URLs of the pages."""

from django.contrib import admin
from django.urls import include, path

from shop import views

urlpatterns = [
    path("", views.index),
    path("buy/<slug:product>", views.buy, name="buy"),
    path("orders/<int:pk>", views.show, name="order"),
    path("admin/queue/", include("qsync.contrib.django.urls")),
    path("admin/", admin.site.urls),
]
