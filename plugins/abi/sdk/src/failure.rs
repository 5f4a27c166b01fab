//! What went wrong, for the host.

use std::fmt;

/// What went wrong, by what the host can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Kind {
    /// The request or a setting is wrong.
    InvalidInput = 1,
    /// The block isn't there.
    NotFound = 2,
    /// It is there already.
    AlreadyExists = 3,
    /// A namespace is known with another size of blocks.
    Mismatch = 4,
    /// A queue is full; try again later.
    Busy = 5,
    /// It can never fit.
    TooLarge = 6,
    /// The capacity is exhausted.
    NoSpace = 7,
    /// A quota is exhausted.
    QuotaExceeded = 8,
    /// Stored bytes are damaged.
    Corrupt = 9,
    /// A deadline passed.
    TimedOut = 10,
    /// The tier is closing.
    Cancelled = 11,
    /// A device or service isn't reachable.
    Unavailable = 12,
    /// Another owner has taken over.
    Fenced = 13,
    /// Not in this plugin.
    Unsupported = 14,
    /// The system refused access.
    PermissionDenied = 15,
    /// An I/O error.
    Io = 16,
    /// A bug of the plugin.
    Internal = 17,
}

/// A kind and a message for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    kind: Kind,
    message: String,
}

impl Failure {
    /// A failure of that kind; the message names the thing and the value.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The message.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}: {}", self.kind, self.message)
    }
}

impl std::error::Error for Failure {}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind;
        let kind = match error.kind() {
            ErrorKind::NotFound => Kind::NotFound,
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Kind::PermissionDenied,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Kind::NoSpace,
            ErrorKind::TimedOut => Kind::TimedOut,
            _ => Kind::Io,
        };
        Self::new(kind, error.to_string())
    }
}
