//! The messages of the stories and the demo: msgpack maps, as an application would post them.

use std::io::Cursor;

use rmp::decode::{read_int, read_map_len, read_str_len};
use rmp::encode::{write_map_len, write_str, write_uint};

use super::oracle::MessageId;

/// The values of `method` in these messages, for the message filter of a module.
pub(crate) const METHODS: [&str; 2] = ["Greeting", "Farewell"];

/// One message: a msgpack map with the fields `method`, `user` (the key) and `number` (counted per key).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) method: String,
    pub(crate) id: MessageId,
}

impl Message {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let written = write_map_len(&mut bytes, 3)
            .and_then(|_| write_str(&mut bytes, "method"))
            .and_then(|()| write_str(&mut bytes, &self.method))
            .and_then(|()| write_str(&mut bytes, "user"))
            .and_then(|()| write_str(&mut bytes, &self.id.0))
            .and_then(|()| write_str(&mut bytes, "number"))
            .and_then(|()| write_uint(&mut bytes, self.id.1));
        written.expect("writing to a vector does not fail");
        bytes
    }

    /// Decodes the bytes of [`Message::encode`]; returns `None` for any other bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Message> {
        let mut bytes = Cursor::new(bytes);
        let 3 = read_map_len(&mut bytes).ok()? else { return None };
        read_text(&mut bytes).filter(|name| name == "method")?;
        let method = read_text(&mut bytes)?;
        read_text(&mut bytes).filter(|name| name == "user")?;
        let user = read_text(&mut bytes)?;
        read_text(&mut bytes).filter(|name| name == "number")?;
        Some(Message { method, id: (user, read_int(&mut bytes).ok()?) })
    }
}

fn read_text(bytes: &mut Cursor<&[u8]>) -> Option<String> {
    let length = read_str_len(bytes).ok()? as usize;
    let start = bytes.position() as usize;
    let text = bytes.get_ref().get(start..start + length)?;
    bytes.set_position((start + length) as u64);
    String::from_utf8(text.to_vec()).ok()
}
