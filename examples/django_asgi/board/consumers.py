"""One websocket per visitor. Between two messages it holds neither a connection nor a thread."""

from channels.generic.websocket import AsyncWebsocketConsumer

from board.models import Message


class Chat(AsyncWebsocketConsumer):
    async def connect(self) -> None:
        await self.channel_layer.group_add("board", self.channel_name)
        await self.accept()

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard("board", self.channel_name)

    async def receive(self, text_data: str = "", bytes_data: bytes | None = None) -> None:
        """Each message is a unit: what it took out of the database is back at its end."""
        message = await Message.objects.acreate(text=text_data)
        news = {"type": "board.news", "text": f"{message.pk}: {message.text}"}
        await self.channel_layer.group_send("board", news)

    async def board_news(self, event: dict[str, str]) -> None:
        await self.send(text_data=event["text"])
