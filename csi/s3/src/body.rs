//! What a put sends: an object in several pieces, each of which goes to the socket from where it lies.
//!
//! Invariant: every try of a put sends the same bytes under the same sum. Caller: `bucket.rs`.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use aws_runtime::auth::PayloadSigningOverride;
use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::context::BeforeTransmitInterceptorContextMut;
use aws_smithy_runtime_api::client::interceptors::{Intercept, dyn_dispatch_hint};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::config_bag::ConfigBag;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use ring::digest;
use volume::rope::Rope;

/// Its pieces, one after another.
pub(crate) fn stream(rope: &Rope) -> ByteStream {
    let mut pieces = rope.pieces();
    match (pieces.next(), pieces.next()) {
        (Some(only), None) => ByteStream::from(only.clone()),
        _ => ByteStream::new(SdkBody::from_body_1_x(Pieces::of(rope))),
    }
}

/// A body on its way.
#[derive(Debug)]
struct Pieces {
    left: std::vec::IntoIter<Bytes>,
    left_bytes: u64,
}

impl Pieces {
    fn of(rope: &Rope) -> Self {
        Self {
            left: rope.pieces().cloned().collect::<Vec<_>>().into_iter(),
            left_bytes: rope.len_bytes(),
        }
    }
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.left.next();
        self.left_bytes -= piece.as_ref().map_or(0, |piece| piece.len() as u64);
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left_bytes == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left_bytes)
    }
}

/// The SHA-256 of a body, which its signature then covers. The SDK would make it anew for each try, and only of a single piece.
#[derive(Debug, Clone)]
pub(crate) struct Signed {
    sum: String,
}

impl Signed {
    pub fn of(rope: &Rope) -> Self {
        let mut sum = digest::Context::new(&digest::SHA256);
        rope.pieces().for_each(|piece| sum.update(piece));
        let digits = sum.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Self { sum: digits }
    }
}

#[dyn_dispatch_hint]
impl Intercept for Signed {
    fn name(&self) -> &'static str {
        "Signed"
    }

    fn modify_before_signing(
        &self,
        _context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        bag: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let sum = PayloadSigningOverride::Precomputed(self.sum.clone());
        bag.interceptor_state().store_put(sum);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope() -> Rope {
        [
            &b"abc"[..],
            b"dbcdecdefdefgefghfghighijhi",
            b"jkijkljklmklmnlmnomnopnopq",
        ]
        .into_iter()
        .map(Bytes::from_static)
        .collect()
    }

    /// The example of FIPS 180-2, B.2, cut.
    #[test]
    fn the_sum_is_of_all_pieces() {
        let sum = "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1";
        assert_eq!(Signed::of(&rope()).sum, sum);
    }

    #[tokio::test]
    async fn a_body_knows_its_length_and_ends_with_its_last_piece() {
        let rope = rope();
        let mut body = stream(&rope);
        assert_eq!(body.size_hint(), (rope.len_bytes(), Some(rope.len_bytes())));
        let mut sent = Vec::new();
        while let Some(piece) = body.next().await {
            sent.push(piece.unwrap());
        }
        assert_eq!(sent.len(), 3, "none is copied to another");
        assert!(rope.is(&sent.concat()));
    }
}
