//! The one error type: a kind by what the caller can do, whether a retry helps, and the context.

use std::fmt;
use std::sync::Arc;

/// What went wrong, by what the caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorKind {
    /// The request itself is wrong (a length, a name, a value); sending it again can't help.
    InvalidInput,
    /// The named thing (namespace, block, file, lease) isn't there.
    NotFound,
    /// It is there already.
    AlreadyExists,
    /// The namespace is known with another layout or identity.
    Mismatch,
    /// A queue or the slot pool is full at this moment; try again later.
    Busy,
    /// It can never fit, however long one waits.
    TooLarge,
    /// The capacity of the tier, or the file system, is exhausted.
    NoSpace,
    /// The namespace's or tenant's quota is exhausted.
    QuotaExceeded,
    /// Stored bytes failed verification; they were not returned.
    Corrupt,
    /// The deadline passed.
    TimedOut,
    /// The caller or a shutdown cancelled it.
    Cancelled,
    /// The tier, daemon or peer is not reachable or not healthy now.
    Unavailable,
    /// Another owner has taken over; this one must stop writing.
    Fenced,
    /// A format, protocol or feature version that this build does not know.
    Unsupported,
    /// The operating system refused access.
    PermissionDenied,
    /// An I/O error of the operating system.
    Io,
    /// A bug: an invariant of kvstored itself did not hold.
    Internal,
}

impl ErrorKind {
    /// All kinds, in the order of their metric labels.
    pub const ALL: [ErrorKind; 17] = [
        Self::InvalidInput,
        Self::NotFound,
        Self::AlreadyExists,
        Self::Mismatch,
        Self::Busy,
        Self::TooLarge,
        Self::NoSpace,
        Self::QuotaExceeded,
        Self::Corrupt,
        Self::TimedOut,
        Self::Cancelled,
        Self::Unavailable,
        Self::Fenced,
        Self::Unsupported,
        Self::PermissionDenied,
        Self::Io,
        Self::Internal,
    ];

    /// The kind's name in metrics, logs and on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidInput => "invalid_input",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::Mismatch => "mismatch",
            Self::Busy => "busy",
            Self::TooLarge => "too_large",
            Self::NoSpace => "no_space",
            Self::QuotaExceeded => "quota_exceeded",
            Self::Corrupt => "corrupt",
            Self::TimedOut => "timed_out",
            Self::Cancelled => "cancelled",
            Self::Unavailable => "unavailable",
            Self::Fenced => "fenced",
            Self::Unsupported => "unsupported",
            Self::PermissionDenied => "permission_denied",
            Self::Io => "io",
            Self::Internal => "internal",
        }
    }

    /// Whether the same request may succeed if sent again later.
    pub const fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::Busy | Self::NoSpace | Self::TimedOut | Self::Unavailable | Self::Io
        )
    }

    /// The kind's stable number on the wire.
    pub fn code(self) -> u8 {
        Self::ALL
            .iter()
            .position(|kind| *kind == self)
            .unwrap_or(Self::ALL.len() - 1) as u8
    }

    /// The kind with that wire number; unknown numbers (a newer peer's) become [`ErrorKind::Internal`].
    pub fn from_code(code: u8) -> Self {
        Self::ALL
            .get(usize::from(code))
            .copied()
            .unwrap_or(Self::Internal)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    context: Vec<(&'static str, String)>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// An error with its kind, a message for people and `name=value` context.
///
/// Cheap to clone, because one failed read may have several waiters.
#[derive(Clone, Debug)]
pub struct Error {
    inner: Arc<Inner>,
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of that kind with a message that names the field and the value.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            inner: Arc::new(Inner {
                kind,
                message: message.into(),
                context: Vec::new(),
                source: None,
            }),
        }
    }

    /// Shorthand for [`ErrorKind::InvalidInput`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidInput, message)
    }

    /// Shorthand for [`ErrorKind::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// Wraps an operating-system error, choosing the kind from its code.
    pub fn from_io(error: std::io::Error, message: impl Into<String>) -> Self {
        use std::io::ErrorKind as IoKind;
        let kind = match error.kind() {
            IoKind::NotFound | IoKind::StaleNetworkFileHandle => ErrorKind::NotFound,
            IoKind::AlreadyExists => ErrorKind::AlreadyExists,
            IoKind::PermissionDenied | IoKind::ReadOnlyFilesystem => ErrorKind::PermissionDenied,
            IoKind::StorageFull | IoKind::QuotaExceeded => ErrorKind::NoSpace,
            IoKind::TimedOut => ErrorKind::TimedOut,
            IoKind::ConnectionRefused
            | IoKind::ConnectionReset
            | IoKind::ConnectionAborted
            | IoKind::BrokenPipe
            | IoKind::NotConnected
            | IoKind::UnexpectedEof => ErrorKind::Unavailable,
            _ => ErrorKind::Io,
        };
        Self {
            inner: Arc::new(Inner {
                kind,
                message: message.into(),
                context: Vec::new(),
                source: Some(Box::new(error)),
            }),
        }
    }

    /// Adds `name=value` to the error's context (a path, a key, a tier).
    pub fn with(self, name: &'static str, value: impl fmt::Display) -> Self {
        let mut inner = Arc::try_unwrap(self.inner).unwrap_or_else(|shared| Inner {
            kind: shared.kind,
            message: shared.message.clone(),
            context: shared.context.clone(),
            source: shared.source.as_ref().map(|source| source.to_string().into()),
        });
        inner.context.push((name, value.to_string()));
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The kind.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// The message without context and source.
    pub fn message(&self) -> &str {
        &self.inner.message
    }

    /// Whether a retry may help.
    pub fn is_retryable(&self) -> bool {
        self.inner.kind.is_retryable()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.inner.kind, self.inner.message)?;
        for (name, value) in &self.inner.context {
            write!(formatter, " {name}={value}")?;
        }
        if let Some(source) = &self.inner.source {
            write!(formatter, ": {source}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner
            .source
            .as_ref()
            .map(|source| &**source as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_wire() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_code(kind.code()), kind);
        }
        assert_eq!(ErrorKind::from_code(250), ErrorKind::Internal);
    }

    #[test]
    fn display_names_kind_message_and_context() {
        let error = Error::new(ErrorKind::NoSpace, "segment can't be allocated").with("tier", "Posix");
        assert_eq!(
            error.to_string(),
            "no_space: segment can't be allocated tier=Posix"
        );
        assert!(error.is_retryable());
        assert!(
            error
                .clone()
                .with("path", "x")
                .to_string()
                .ends_with("tier=Posix path=x")
        );
    }

    #[test]
    fn a_full_disk_is_no_space() {
        let error = Error::from_io(std::io::Error::from_raw_os_error(28), "write");
        assert_eq!(error.kind(), ErrorKind::NoSpace);
    }
}
