//! Bytes on their way: a read buffer whose memory is lent while it is needed, and a [`Pipe`] that carries one
//! direction of a connection.
//!
//! A protocol looks at what has been read ([`Pipe::unread`]) and says of each piece whether it goes on as it is
//! ([`Pipe::pass`]), is taken out ([`Pipe::skip`]) or has something put before it ([`Pipe::emit`]). What passes is
//! written from the buffer it was read into.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes in one lent block, enough for a page of rows; larger messages that must be seen whole grow their own.
pub const BLOCK_BYTES: usize = 16 * 1024;

/// Blocks that one thread keeps for reuse: 2 MiB.
const SPARE_BLOCKS: usize = 128;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A read buffer that owns no memory while it is empty.
#[derive(Debug, Default)]
pub struct Buffer {
    /// Always initialised to its whole length, so that reading into it needs no unsafe code.
    data: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// What has been read and not yet consumed.
    #[must_use]
    pub fn filled(&self) -> &[u8] {
        &self.data[self.start..self.end]
    }

    /// Bytes in [`Self::filled`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// True when nothing is left to consume.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Forgets the first `n` bytes. Panics when there are fewer: callers count what they saw.
    pub fn consume(&mut self, n: usize) {
        assert!(n <= self.len(), "consumed more than was read");
        self.start += n;
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Makes room for `total` bytes counted from the first unconsumed one.
    pub fn reserve_total(&mut self, total: usize) {
        if self.data.is_empty() {
            self.data = take_block();
        }
        if self.data.len() - self.start >= total {
            return;
        }
        self.compact();
        if self.data.len() < total {
            self.data.resize(total, 0);
        }
    }

    /// Appends bytes, for tests and for what was read elsewhere.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.reserve_total(self.len() + bytes.len());
        self.data[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// Reads once. `Ok(0)` is the end of the stream. When the peer has nothing to say and the buffer is empty, its
    /// memory goes back first.
    pub fn poll_read_from<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.data.is_empty() {
            self.data = take_block();
        }
        if self.end == self.data.len() {
            self.compact();
            if self.end == self.data.len() {
                // A message that must be seen whole is longer than the block.
                let len = self.data.len();
                self.data.resize(len * 2, 0);
            }
        }
        let mut space = ReadBuf::new(&mut self.data[self.end..]);
        match Pin::new(stream).poll_read(cx, &mut space) {
            Poll::Ready(Ok(())) => {
                let n = space.filled().len();
                self.end += n;
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => {
                self.release();
                Poll::Pending
            }
        }
    }

    /// Gives the memory back when nothing is in it.
    pub fn release(&mut self) {
        if self.is_empty() && !self.data.is_empty() {
            self.start = 0;
            self.end = 0;
            put_block(std::mem::take(&mut self.data));
        }
    }

    fn compact(&mut self) {
        if self.start > 0 {
            self.data.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.start = 0;
        self.end = 0;
        self.release();
    }
}

fn take_block() -> Vec<u8> {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BLOCK_BYTES])
}

fn put_block(block: Vec<u8>) {
    if block.len() != BLOCK_BYTES {
        return;
    }
    // A thread that is ending has no pool left; then the block is simply freed.
    let _ = SPARE.try_with(|spare| {
        let mut spare = spare.borrow_mut();
        if spare.len() < SPARE_BLOCKS {
            spare.push(block);
        }
    });
}

/// One direction of a connection: read from one peer, judged, written to the other.
///
/// Output is `made` (bytes of our own, and read bytes that had to be moved) followed by the first `direct` bytes of
/// the input.
#[derive(Debug, Default)]
pub struct Pipe {
    input: Buffer,
    made: Vec<u8>,
    made_written: usize,
    direct: usize,
    /// Written, but perhaps not yet through the TLS layer below.
    unflushed: bool,
}

impl Pipe {
    /// A pipe that goes on with what was already read.
    #[must_use]
    pub fn with_input(input: Buffer) -> Self {
        Self { input, ..Self::default() }
    }

    /// Bytes that were read and not yet judged.
    #[must_use]
    pub fn unread(&self) -> &[u8] {
        &self.input.filled()[self.direct..]
    }

    /// Changes one unread byte in place: a header's, where the rest goes on as it is.
    pub fn patch(&mut self, at: usize, byte: u8) {
        let at = self.input.start + self.direct + at;
        assert!(at < self.input.end, "patched what was not read");
        self.input.data[at] = byte;
    }

    /// The next `n` unread bytes go on as they are.
    pub fn pass(&mut self, n: usize) {
        assert!(n <= self.unread().len(), "passed more than was read");
        self.direct += n;
    }

    /// The next `n` unread bytes go no further.
    pub fn skip(&mut self, n: usize) {
        self.settle();
        self.input.consume(n);
    }

    /// Puts bytes of our own after everything that has passed so far.
    pub fn emit(&mut self, bytes: &[u8]) {
        self.output().extend_from_slice(bytes);
    }

    /// Where to append bytes of our own, after everything that has passed so far.
    pub fn output(&mut self) -> &mut Vec<u8> {
        self.settle();
        &mut self.made
    }

    /// Makes room for a message of `total` bytes of which only a part was read.
    pub fn expect(&mut self, total: usize) {
        self.input.reserve_total(self.direct + total);
    }

    /// True when something waits to be written.
    #[must_use]
    pub fn has_output(&self) -> bool {
        self.direct > 0 || self.made_written < self.made.len() || self.unflushed
    }

    /// Bytes that wait to be written.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.made.len() - self.made_written + self.direct
    }

    /// The input, for handshakes that read before a pipe is needed.
    pub fn input_mut(&mut self) -> &mut Buffer {
        &mut self.input
    }

    /// Forgets what waits to be written: nobody is left to read it.
    pub fn discard_output(&mut self) {
        self.input.consume(self.direct);
        self.direct = 0;
        self.made.clear();
        self.made_written = 0;
        self.unflushed = false;
    }

    /// Reads once from `stream`; `Ok(0)` is its end.
    pub fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.input.poll_read_from(stream, cx)
    }

    /// Writes what waits, as far as the peer takes it; `Ready(Ok)` once nothing waits.
    pub fn poll_flush<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.direct > 0 || self.made_written < self.made.len() {
            let made = &self.made[self.made_written..];
            let direct = &self.input.filled()[..self.direct];
            let stream = Pin::new(&mut *stream);
            let n = if made.is_empty() {
                ready!(stream.poll_write(cx, direct))?
            } else if direct.is_empty() {
                ready!(stream.poll_write(cx, made))?
            } else {
                ready!(stream.poll_write_vectored(cx, &[IoSlice::new(made), IoSlice::new(direct)]))?
            };
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            let from_made = n.min(made.len());
            self.made_written += from_made;
            self.direct -= n - from_made;
            self.input.consume(n - from_made);
            if self.made_written == self.made.len() {
                self.made_written = 0;
                if self.made.capacity() > BLOCK_BYTES {
                    self.made = Vec::new();
                } else {
                    self.made.clear();
                }
            }
        }
        if self.unflushed {
            ready!(Pin::new(stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// What would be written now, taken out: for whoever drives a pipe without sockets.
    pub fn take_output(&mut self) -> Vec<u8> {
        let mut out = self.made.split_off(self.made_written);
        out.extend_from_slice(&self.input.filled()[..self.direct]);
        self.discard_output();
        out
    }

    /// Gives all memory back that holds nothing.
    pub fn release(&mut self) {
        self.input.release();
        if self.made.is_empty() {
            self.made = Vec::new();
        }
    }

    /// Moves what has passed behind our own bytes, so that the input may be cut after it.
    fn settle(&mut self) {
        if self.direct > 0 {
            self.made.extend_from_slice(&self.input.filled()[..self.direct]);
            self.input.consume(self.direct);
            self.direct = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_keeps_the_order_of_passed_and_emitted_bytes() {
        let mut pipe = Pipe::default();
        pipe.input_mut().extend(b"abcdefgh");
        pipe.pass(2);
        pipe.emit(b"[1]");
        pipe.skip(2);
        pipe.pass(1);
        pipe.emit(b"[2]");
        pipe.pass(3);
        assert_eq!(pipe.take_output(), b"ab[1]e[2]fgh");
        assert!(pipe.unread().is_empty());
    }

    #[test]
    fn an_empty_buffer_owns_no_memory() {
        let mut buffer = Buffer::default();
        buffer.extend(b"x");
        buffer.consume(1);
        buffer.release();
        assert_eq!(buffer.data.capacity(), 0);
    }

    #[test]
    fn a_buffer_grows_for_a_message_that_must_be_seen_whole() {
        let mut buffer = Buffer::default();
        let long = vec![7; BLOCK_BYTES * 3];
        buffer.extend(&long[..10]);
        buffer.consume(4);
        buffer.reserve_total(BLOCK_BYTES * 2);
        buffer.extend(&long);
        assert_eq!(buffer.len(), 6 + long.len());
        assert!(buffer.filled().iter().all(|b| *b == 7));
    }
}
