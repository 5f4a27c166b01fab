//! A request body made of slices, so that a large prompt is never copied to be sent on.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

/// See the module's page.
#[derive(Clone, Debug, Default)]
pub struct Pieces {
    pieces: Vec<Bytes>,
    next: usize,
}

impl Pieces {
    /// Of those slices, empty ones left out.
    pub fn new(mut pieces: Vec<Bytes>) -> Self {
        pieces.retain(|piece| !piece.is_empty());
        Self { pieces, next: 0 }
    }

    /// Bytes still to come.
    pub fn remaining(&self) -> usize {
        self.pieces.iter().skip(self.next).map(Bytes::len).sum()
    }

    /// All of it in one piece, copied if there are several.
    pub fn into_bytes(mut self) -> Bytes {
        match self.pieces.as_mut_slice() {
            [only] => std::mem::take(only),
            several => Bytes::from(several.concat()),
        }
    }
}

impl From<Bytes> for Pieces {
    fn from(whole: Bytes) -> Self {
        Self::new(vec![whole])
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let piece = this.pieces.get_mut(this.next).map(std::mem::take);
        this.next += 1;
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.next >= self.pieces.len()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining() as u64)
    }
}
