//! The token in every call's metadata.

use std::fmt;

use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::listen::Visitor;

const HEADER: &str = "authorization";
const SCHEME: &[u8] = b"Bearer ";

/// Lets calls through that carry the token, and marks their connections as no stranger's.
#[derive(Clone)]
pub(crate) struct Gate {
    /// The token's digest: comparing digests takes the same time wherever they differ.
    expected: Option<blake3::Hash>,
}

impl Gate {
    pub fn new(token: Option<&[u8]>) -> Self {
        Self {
            expected: token.map(blake3::hash),
        }
    }

    /// Whether a call's metadata shows the token.
    pub fn admits(&self, metadata: &MetadataMap) -> bool {
        let shown = metadata.get(HEADER).map(MetadataValue::as_bytes);
        self.admits_header(shown)
    }

    /// Whether the value of an `authorization` header shows the token.
    pub fn admits_header(&self, shown: Option<&[u8]>) -> bool {
        self.admits_token(shown.and_then(|value| value.strip_prefix(SCHEME)))
    }

    /// Whether it's the token.
    pub fn admits_token(&self, token: Option<&[u8]>) -> bool {
        let Some(expected) = &self.expected else {
            return true;
        };
        token.is_some_and(|token| blake3::hash(token) == *expected)
    }
}

impl Interceptor for Gate {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        if !self.admits(request.metadata()) {
            return Err(Status::unauthenticated(
                "the call doesn't carry this pool's token",
            ));
        }
        if let Some(visitor) = request.extensions().get::<Visitor>() {
            visitor.is_known();
        }
        Ok(request)
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Gate").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_opens() {
        let gate = Gate::new(Some(b"secret"));
        assert!(gate.admits_header(Some(b"Bearer secret")));
        let wrong: [Option<&[u8]>; 6] = [
            None,
            Some(b""),
            Some(b"secret"),
            Some(b"Bearer "),
            Some(b"Bearer secre"),
            Some(b"Bearer secret "),
        ];
        for shown in wrong {
            assert!(!gate.admits_header(shown), "{shown:?}");
        }
        assert!(Gate::new(None).admits_header(None));
    }
}
