//! The compressed protocol towards clients: packets of the ordinary protocol, packed in packets of its own.
//!
//! Shape: `len: u24 | seq: u8 | unpacked len: u24 | len bytes`, integers little-endian; an unpacked length of 0 means
//! that the bytes are as they are. How the ordinary packets lie in the packed ones has no meaning. Source: MySQL
//! Source Documentation, "Compression".

use std::{
    cell::RefCell,
    io::{self, Read},
    pin::Pin,
    task::{Context, Poll, ready},
};

use flate2::{Compress, FlushCompress, Status, read::ZlibDecoder};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    buffer::{BLOCK_BYTES, Buffer},
    protocol::Compression,
    stream::Stream,
};

/// Length, sequence number, unpacked length.
const HEADER_BYTES: usize = 7;
/// Shorter ones are sent as they are, as the server and its client library do.
const MIN_PACKED_BYTES: usize = 50;
/// Packed at once, so that a client can begin to read before all is packed.
const CHUNK_BYTES: usize = 1 << 18;
/// What a client may ask for beyond this costs more time than it saves.
const MAX_ZSTD_LEVEL: u8 = 6;
/// 16 MiB: nobody needs a larger window for a packet that holds less.
const MAX_WINDOW_LOG: u32 = 24;

thread_local! {
    static ZLIB: RefCell<Compress> = RefCell::new(Compress::new(flate2::Compression::default(), true));
    static ZSTD: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
}

/// A stream whose peer packs what it sends and unpacks what it gets.
#[derive(Debug)]
pub struct Compressed {
    stream: Stream,
    compression: Compression,
    /// As it came.
    raw: Buffer,
    /// Unpacked and not yet read.
    plain: Vec<u8>,
    plain_read: usize,
    /// Packed and not yet written.
    packed: Vec<u8>,
    packed_written: usize,
    /// Of the next packet that we send.
    seq: u8,
}

impl Compressed {
    /// Over `stream`; what has been read of it already is moved out of `ahead`.
    pub fn new(stream: Stream, compression: Compression, ahead: &mut Buffer) -> Self {
        Self {
            stream,
            compression,
            raw: std::mem::take(ahead),
            plain: Vec::new(),
            plain_read: 0,
            packed: Vec::new(),
            packed_written: 0,
            seq: 0,
        }
    }

    /// What lies underneath.
    #[must_use]
    pub const fn stream(&self) -> &Stream {
        &self.stream
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.packed.get(self.packed_written..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.packed_written += n,
            }
        }
        self.packed_written = 0;
        empty(&mut self.packed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Compressed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if let Some(rest) = this.plain.get(this.plain_read..).filter(|rest| !rest.is_empty()) {
                let now = rest.get(..buf.remaining()).unwrap_or(rest);
                buf.put_slice(now);
                this.plain_read += now.len();
                return Poll::Ready(Ok(()));
            }
            this.plain_read = 0;
            empty(&mut this.plain);
            if let Some((total, seq)) = unpack(this.compression, this.raw.filled(), &mut this.plain)? {
                this.raw.consume(total);
                this.seq = seq.wrapping_add(1);
                continue;
            }
            if ready!(this.raw.poll_read_from(&mut this.stream, cx))? == 0 {
                return Poll::Ready(match this.raw.is_empty() {
                    true => Ok(()),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                });
            }
        }
    }
}

impl AsyncWrite for Compressed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        let chunk = buf.get(..CHUNK_BYTES).unwrap_or(buf);
        if chunk.is_empty() {
            return Poll::Ready(Ok(0));
        }
        pack(this.compression, chunk, this.seq, &mut this.packed);
        this.seq = this.seq.wrapping_add(1);
        // What does not go now goes with the next write or flush.
        if let Poll::Ready(Err(error)) = this.poll_drain(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(chunk.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

/// Forgets what is in it, and its memory when that is much.
fn empty(bytes: &mut Vec<u8>) {
    if bytes.capacity() > BLOCK_BYTES {
        *bytes = Vec::new();
    } else {
        bytes.clear();
    }
}

/// Unpacks the first packet of `raw` into `plain`; gives its length and sequence number, `None` when it is not whole.
/// Errors: `InvalidData` when it does not hold what it says.
fn unpack(compression: Compression, raw: &[u8], plain: &mut Vec<u8>) -> io::Result<Option<(usize, u8)>> {
    let Some(&[a, b, c, seq, d, e, f]) = raw.first_chunk() else { return Ok(None) };
    let len = u32::from_le_bytes([a, b, c, 0]) as usize;
    let unpacked = u32::from_le_bytes([d, e, f, 0]) as usize;
    let Some(body) = raw.get(HEADER_BYTES..HEADER_BYTES + len) else { return Ok(None) };
    if unpacked == 0 {
        plain.extend_from_slice(body);
        return Ok(Some((HEADER_BYTES + len, seq)));
    }
    // One byte more than it says, to see that there is none. Memory grows with what is there, not with what is said.
    let limit = unpacked as u64 + 1;
    let read = match compression {
        Compression::None => return Err(io::ErrorKind::InvalidData.into()),
        Compression::Zlib => ZlibDecoder::new(body).take(limit).read_to_end(plain),
        Compression::Zstd(_) => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(body)?;
            decoder.window_log_max(MAX_WINDOW_LOG)?;
            decoder.take(limit).read_to_end(plain)
        }
    };
    match read {
        Ok(n) if n == unpacked => Ok(Some((HEADER_BYTES + len, seq))),
        Ok(_) => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "a packed packet has not the length it says"))
        }
        Err(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "a packed packet does not unpack")),
    }
}

/// Appends one packet that holds `plain`, which has at most [`CHUNK_BYTES`].
fn pack(compression: Compression, plain: &[u8], seq: u8, out: &mut Vec<u8>) {
    let mut body = Vec::new();
    let smaller = plain.len() >= MIN_PACKED_BYTES && {
        // No room for more than there was: what does not shrink goes as it is.
        body.reserve_exact(plain.len() - 1);
        match compression {
            Compression::None => false,
            Compression::Zlib => ZLIB.with_borrow_mut(|zlib| {
                zlib.reset();
                matches!(zlib.compress_vec(plain, &mut body, FlushCompress::Finish), Ok(Status::StreamEnd))
            }),
            Compression::Zstd(level) => ZSTD.with_borrow_mut(|zstd| pack_zstd(zstd, level, plain, &mut body)),
        }
    };
    let (body, unpacked) = if smaller { (body.as_slice(), plain.len()) } else { (plain, 0) };
    let u24 = |n: usize| (n as u64).to_le_bytes().into_iter().take(3);
    out.reserve(HEADER_BYTES + body.len());
    out.extend(u24(body.len()));
    out.push(seq);
    out.extend(u24(unpacked));
    out.extend_from_slice(body);
}

/// True when it became smaller.
fn pack_zstd(
    compressor: &mut Option<zstd::bulk::Compressor<'static>>,
    level: u8,
    plain: &[u8],
    body: &mut Vec<u8>,
) -> bool {
    let level = i32::from(if level == 0 { 3 } else { level.min(MAX_ZSTD_LEVEL) });
    if compressor.is_none() {
        *compressor = zstd::bulk::Compressor::new(level).ok();
    }
    let Some(compressor) = compressor else { return false };
    compressor.set_compression_level(level).is_ok() && compressor.compress_to_buffer(plain, body).is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    const BOTH: [Compression; 2] = [Compression::Zlib, Compression::Zstd(3)];

    async fn pair(compression: Compression) -> (Compressed, Compressed) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (here, there) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let side = |tcp| Compressed::new(Stream::Plain(tcp), compression, &mut Buffer::default());
        (side(here.unwrap()), side(there.unwrap().0))
    }

    fn packed(compression: Compression, plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        pack(compression, plain, 7, &mut out);
        out
    }

    #[test]
    fn packets_unpack_to_what_they_were_at_every_cut() {
        for compression in BOTH {
            for plain in [b"x".to_vec(), vec![b'a'; 49], vec![b'a'; 50], vec![b'b'; CHUNK_BYTES]] {
                let whole = packed(compression, &plain);
                assert_eq!(whole.len() < plain.len(), plain.len() >= MIN_PACKED_BYTES);
                for cut in 0..whole.len() {
                    assert!(unpack(compression, &whole[..cut], &mut Vec::new()).unwrap().is_none());
                }
                let mut got = Vec::new();
                assert_eq!(unpack(compression, &whole, &mut got).unwrap(), Some((whole.len(), 7)));
                assert_eq!(got, plain);
            }
        }
    }

    #[test]
    fn what_does_not_shrink_goes_as_it_is() {
        let mut random = vec![0; 1000];
        getrandom::fill(&mut random).unwrap();
        for compression in BOTH {
            let packet = packed(compression, &random);
            assert_eq!(packet[..HEADER_BYTES], [0xe8, 3, 0, 7, 0, 0, 0]);
            assert_eq!(packet[HEADER_BYTES..], random);
        }
    }

    #[test]
    fn packets_that_hold_other_than_they_say_are_refused() {
        for compression in BOTH {
            let whole = packed(compression, &[b'a'; 1000]);
            let with = |at: usize, byte: u8| {
                let mut changed = whole.clone();
                changed[at] = byte;
                changed
            };
            // More and less than it holds, and no compressed data at all.
            for bad in [with(4, 0xe9), with(4, 0xe7), with(6, 0xff), with(7, 0), with(whole.len() - 1, 0xff)]
            {
                let read = unpack(compression, &bad, &mut Vec::new());
                let refused = read.is_err_and(|error| error.kind() == io::ErrorKind::InvalidData);
                // zstd without a checksum does not notice a changed literal.
                assert!(refused || matches!(compression, Compression::Zstd(_)), "{compression:?} {bad:?}");
            }
            let mut bomb = Vec::new();
            let plain = vec![0; 40 << 20];
            match compression {
                Compression::Zlib => {
                    let mut encoder = flate2::read::ZlibEncoder::new(&plain[..], flate2::Compression::best());
                    encoder.read_to_end(&mut bomb).unwrap();
                }
                _ => bomb = zstd::bulk::compress(&plain, 3).unwrap(),
            }
            let mut packet: Vec<u8> = (bomb.len() as u64).to_le_bytes()[..3].to_vec();
            packet.extend([0, 0xff, 0xff, 0xff]);
            packet.extend(bomb);
            let mut got = Vec::new();
            assert!(unpack(compression, &packet, &mut got).is_err());
            assert!(got.len() <= 1 << 24, "{}", got.len());
        }
    }

    #[tokio::test]
    async fn streams_carry_what_is_written_and_count_packets() {
        for compression in BOTH {
            let (mut here, mut there) = pair(compression).await;
            let long: Vec<u8> = (0..3_000_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
            let sent = long.clone();
            let writer = tokio::spawn(async move {
                here.write_all(b"short").await.unwrap();
                here.write_all(&sent).await.unwrap();
                here.flush().await.unwrap();
                let mut answer = [0; 2];
                here.read_exact(&mut answer).await.unwrap();
                assert_eq!(&answer, b"ok");
                // It was sent as a packet that follows the last one read.
                here.seq
            });
            let mut got = vec![0; 5 + long.len()];
            there.read_exact(&mut got).await.unwrap();
            assert!(got.starts_with(b"short") && got.ends_with(&long));
            let next = there.seq;
            there.write_all(b"ok").await.unwrap();
            there.flush().await.unwrap();
            assert_eq!(writer.await.unwrap(), next.wrapping_add(1));
            drop(there);
        }
    }

    #[tokio::test]
    async fn an_end_within_a_packet_is_an_error() {
        let (mut here, mut there) = pair(Compression::Zlib).await;
        let whole = packed(Compression::Zlib, &[b'a'; 100]);
        here.stream.write_all(&whole[..whole.len() - 1]).await.unwrap();
        here.stream.shutdown().await.unwrap();
        let error = there.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
