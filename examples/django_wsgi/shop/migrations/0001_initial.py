from django.db import migrations, models


class Migration(migrations.Migration):
    operations = [
        migrations.CreateModel(
            "Order",
            [
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("item", models.TextField()),
                ("shipped", models.BooleanField(default=False)),
                ("mailed", models.BooleanField(default=False)),
            ],
        )
    ]
