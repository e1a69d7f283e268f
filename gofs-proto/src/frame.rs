//! Frames: `{length, header length, kind, crc, request id} header payload`.
//!
//! The header is a prost message, the payload raw bytes that are never copied into
//! one. The checksum covers the prefix and the header; payloads carry their own in the
//! header where they are data. Everything read is input: lengths are checked before
//! allocation, the checksum before the header is looked at.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// What a client sends before its first frame, so that a door knows it from HTTP/2.
pub const PREFACE: [u8; 8] = *b"gofsfr1\n";
/// Bytes of the prefix of a frame.
pub const PREFIX_BYTES: usize = 24;
/// Largest header, bytes: a page of a directory with attributes, or a batch of edits.
pub const HEADER_MAX_BYTES: usize = 8 << 20;
/// Largest payload, bytes: several requests of the kernel's 1 MiB gathered in one write.
pub const PAYLOAD_MAX_BYTES: usize = 8 << 20;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// See [`crate::kind`].
    pub kind: u16,
    /// Chosen by the requester, repeated in the reply.
    pub id: u64,
    /// An encoded prost message.
    pub header: Bytes,
    /// Raw bytes.
    pub payload: Bytes,
}

/// Bytes that are not a frame; the connection is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A length is over its bound.
    #[error("frame with a header of {header} and a payload of {payload} bytes: over the limit")]
    TooLong {
        /// Bytes of header announced.
        header: usize,
        /// Bytes of payload announced.
        payload: usize,
    },
    /// Header length over the frame's.
    #[error("frame lengths contradict each other")]
    Lengths,
    /// Prefix or header damaged.
    #[error("frame checksum is {found:#010x}, its bytes give {computed:#010x}")]
    Checksum {
        /// In the frame.
        found: u32,
        /// Of its bytes.
        computed: u32,
    },
}

/// The prefix and header of a frame, ready to be sent before its payload.
///
/// Panics if `header` or `payload_len` is over its bound: the sender's own bug.
pub fn encode_head(kind: u16, id: u64, header: &impl prost::Message, payload_len: usize) -> Bytes {
    let header_len = header.encoded_len();
    assert!(header_len <= HEADER_MAX_BYTES && payload_len <= PAYLOAD_MAX_BYTES, "frame over its bound");
    let mut out = BytesMut::with_capacity(PREFIX_BYTES + header_len);
    out.put_u32_le((header_len + payload_len) as u32);
    out.put_u32_le(header_len as u32);
    out.put_u16_le(kind);
    out.put_u16_le(0);
    out.put_u32_le(0);
    out.put_u64_le(id);
    header.encode(&mut out).expect("a BytesMut grows");
    let crc = checksum(&out);
    out[12..16].copy_from_slice(&crc.to_le_bytes());
    out.freeze()
}

/// CRC32C of prefix and header with the checksum's own bytes taken as zeros.
fn checksum(head: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&head[..12]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &head[16..])
}

/// Takes the next frame off `buffer`, or says how many bytes it must hold at least
/// before the next try.
pub fn decode(buffer: &mut BytesMut) -> Result<Result<Frame, usize>, FrameError> {
    if buffer.len() < PREFIX_BYTES {
        return Ok(Err(PREFIX_BYTES));
    }
    let mut prefix = &buffer[..PREFIX_BYTES];
    let length = prefix.get_u32_le() as usize;
    let header_len = prefix.get_u32_le() as usize;
    let kind = prefix.get_u16_le();
    let flags = prefix.get_u16_le();
    let found = prefix.get_u32_le();
    let id = prefix.get_u64_le();
    if header_len > length || flags != 0 {
        return Err(FrameError::Lengths);
    }
    if header_len > HEADER_MAX_BYTES || length - header_len > PAYLOAD_MAX_BYTES {
        return Err(FrameError::TooLong { header: header_len, payload: length - header_len });
    }
    let head_len = PREFIX_BYTES + header_len;
    if buffer.len() >= head_len {
        let computed = checksum(&buffer[..head_len]);
        if computed != found {
            return Err(FrameError::Checksum { found, computed });
        }
    }
    if buffer.len() < PREFIX_BYTES + length {
        return Ok(Err(PREFIX_BYTES + length));
    }
    let mut whole = buffer.split_to(PREFIX_BYTES + length).freeze();
    let header = whole.slice(PREFIX_BYTES..head_len);
    whole.advance(head_len);
    Ok(Ok(Frame { kind, id, header, payload: whole }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Lookup;

    fn sample() -> BytesMut {
        let header = Lookup { parent: 1, name: b"a"[..].into() };
        let mut bytes = BytesMut::from(&encode_head(4, 7, &header, 3)[..]);
        bytes.extend_from_slice(b"xyz");
        bytes
    }

    #[test]
    fn a_frame_comes_back_as_it_was_sent() {
        let mut bytes = sample();
        let frame = decode(&mut bytes).unwrap().unwrap();
        assert_eq!((frame.kind, frame.id, &frame.payload[..]), (4, 7, &b"xyz"[..]));
        assert!(bytes.is_empty());
    }

    #[test]
    fn a_cut_frame_asks_for_the_bytes_it_lacks() {
        let whole = sample();
        for len in 0..whole.len() {
            let need = decode(&mut BytesMut::from(&whole[..len])).unwrap().unwrap_err();
            assert!(need > len && need <= whole.len());
        }
    }

    #[test]
    fn every_flipped_bit_of_the_head_is_noticed() {
        let whole = sample();
        for bit in 0..(whole.len() - 3) * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(decode(&mut bytes), Ok(Ok(_))), "bit {bit}");
        }
    }
}
