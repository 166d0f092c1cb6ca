//! Bytes for a client, with room in front of them for the header of whichever transport carries
//! them: 8 bytes of a SPDY data frame, or the stream number of a WebSocket message. What a process
//! writes is read once, into a packet, and sent from there without a copy.

/// The largest header, that of a SPDY frame.
const HEADROOM: usize = 8;

/// A payload behind free room for its header.
pub(crate) struct Packet {
    bytes: Vec<u8>,
    length: usize,
}

impl Packet {
    /// An empty packet that takes up to `size` bytes of payload.
    pub(crate) fn with_room(size: usize) -> Self {
        Self { bytes: vec![0; HEADROOM + size], length: 0 }
    }

    /// Where a read puts its bytes; `filled` then says how many there were.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[HEADROOM..]
    }

    /// This packet with the first `length` bytes of its room as the payload.
    ///
    /// # Panics
    /// `length` is more than the room.
    pub(crate) fn filled(&mut self, length: usize) -> &mut Self {
        assert!(HEADROOM + length <= self.bytes.len(), "a read returns no more than its room");
        self.length = length;
        self
    }

    pub(crate) fn payload(&self) -> &[u8] {
        &self.bytes[HEADROOM..HEADROOM + self.length]
    }

    /// `header` and the payload behind it, in one piece for one write.
    pub(crate) fn framed<const N: usize>(&mut self, header: [u8; N]) -> &[u8] {
        const { assert!(N <= HEADROOM, "a transport's header has room in every packet") }
        let start = HEADROOM - N;
        self.bytes[start..HEADROOM].copy_from_slice(&header);
        &self.bytes[start..HEADROOM + self.length]
    }
}

impl From<&[u8]> for Packet {
    fn from(payload: &[u8]) -> Self {
        let mut packet = Self::with_room(payload.len());
        packet.room().copy_from_slice(payload);
        packet.length = payload.len();
        packet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_of_any_length_stands_right_before_the_payload() {
        let mut packet = Packet::with_room(8);
        packet.room()[..2].copy_from_slice(b"ab");
        assert_eq!(packet.filled(2).framed([9]), [9, b'a', b'b']);
        assert_eq!(packet.framed(*b"12345678"), b"12345678ab");
        assert_eq!(packet.payload(), b"ab");
        assert_eq!(Packet::from(&b""[..]).framed([7]), [7]);
    }
}
