//! Errors on the wire: of a whole call as a gRPC status with the kind in its metadata, of one item as a message.

use kvstored_core::{Error, ErrorKind, Result};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use super::proto::Failure;

/// Metadata with the kind's name.
const KIND: &str = "kvstored-error";
/// Metadata with the address of the master that leads.
const LEADER: &str = "kvstored-leader";
/// Stands for success in a list of failures.
const SUCCESS: u32 = 255;
/// The longest text of an error that is believed.
const MAX_TEXT_BYTES: usize = 1024;

/// A whole call's failure.
pub(crate) fn to_status(error: &Error) -> Status {
    let kind = error.kind();
    let mut status = Status::new(code_of(kind), error.to_string());
    status
        .metadata_mut()
        .insert(KIND, MetadataValue::from_static(kind.name()));
    status
}

/// Another master leads, or none does.
pub(crate) fn not_leader(leader: Option<&str>) -> Status {
    let message = match leader {
        Some(address) => format!("the master at {address} leads"),
        None => "no master leads at this moment".to_owned(),
    };
    let mut status = to_status(&Error::new(ErrorKind::Unavailable, message));
    // an empty value says that this isn't the leader all the same
    let address = MetadataValue::try_from(leader.unwrap_or_default());
    if let Ok(address) = address {
        status.metadata_mut().insert(LEADER, address);
    }
    status
}

/// The leader's address in a refusal: empty where it isn't known, `None` where it's no such refusal.
pub(crate) fn leader_in(status: &Status) -> Option<&str> {
    status.metadata().get(LEADER)?.to_str().ok()
}

/// Whether a master said this, and not whatever lies between.
pub(crate) fn is_from_master(status: &Status) -> bool {
    status.metadata().contains_key(KIND)
}

/// A whole call's failure, for the caller.
pub(crate) fn from_status(status: &Status) -> Error {
    let named = status.metadata().get(KIND).and_then(|name| name.to_str().ok());
    let named = named.and_then(|name| ErrorKind::ALL.into_iter().find(|kind| kind.name() == name));
    let kind = named.unwrap_or_else(|| match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => ErrorKind::PermissionDenied,
        Code::InvalidArgument | Code::OutOfRange => ErrorKind::InvalidInput,
        Code::NotFound => ErrorKind::NotFound,
        Code::ResourceExhausted => ErrorKind::Busy,
        Code::DeadlineExceeded => ErrorKind::TimedOut,
        Code::Cancelled => ErrorKind::Cancelled,
        Code::Unimplemented => ErrorKind::Unsupported,
        Code::Internal | Code::DataLoss => ErrorKind::Internal,
        _ => ErrorKind::Unavailable,
    });
    let prefix = format!("{kind}: ");
    let text = cut(status.message());
    Error::new(kind, text.strip_prefix(&prefix).unwrap_or(text))
}

/// One item's outcome.
pub(crate) fn to_failure(outcome: &Result<()>) -> Failure {
    match outcome {
        Ok(()) => Failure {
            kind: SUCCESS,
            message: String::new(),
        },
        Err(error) => failure(error),
    }
}

/// One item's error.
pub(crate) fn failure(error: &Error) -> Failure {
    Failure {
        kind: u32::from(error.kind().code()),
        message: error.message().to_owned(),
    }
}

/// One item's outcome, for the caller.
pub(crate) fn from_failure(failure: &Failure) -> Result<()> {
    if failure.kind == SUCCESS {
        Ok(())
    } else {
        Err(error_of(failure))
    }
}

/// One item's error, for the caller.
pub(crate) fn error_of(failure: &Failure) -> Error {
    let kind = u8::try_from(failure.kind).map_or(ErrorKind::Internal, ErrorKind::from_code);
    Error::new(kind, cut(&failure.message))
}

fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_TEXT_BYTES))
        .unwrap_or_default()
}

fn code_of(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InvalidInput | ErrorKind::Mismatch | ErrorKind::TooLarge => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::Busy | ErrorKind::NoSpace | ErrorKind::QuotaExceeded => Code::ResourceExhausted,
        ErrorKind::TimedOut => Code::DeadlineExceeded,
        ErrorKind::Cancelled => Code::Cancelled,
        ErrorKind::Unavailable | ErrorKind::Io => Code::Unavailable,
        ErrorKind::Fenced => Code::FailedPrecondition,
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        ErrorKind::Corrupt | ErrorKind::Internal => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_come_back_as_they_were() {
        for kind in ErrorKind::ALL {
            let error = Error::new(kind, "why").with("what", 7);
            let status = to_status(&error);
            let back = from_status(&status);
            assert_eq!(back.kind(), kind);
            assert!(back.message().starts_with("why"), "{back}");
            assert_eq!(from_failure(&failure(&error)).unwrap_err().kind(), kind);
        }
        from_failure(&to_failure(&Ok(()))).unwrap();
    }

    #[test]
    fn a_refusal_names_the_leader() {
        assert_eq!(leader_in(&not_leader(Some("a:1"))), Some("a:1"));
        assert_eq!(leader_in(&not_leader(None)), Some(""));
        assert_eq!(leader_in(&to_status(&Error::invalid("x"))), None);
        assert!(!is_from_master(&Status::unavailable("connection refused")));
    }

    #[test]
    fn long_texts_are_cut() {
        let long = Failure {
            kind: 0,
            message: "ä".repeat(5000),
        };
        assert!(error_of(&long).message().len() <= MAX_TEXT_BYTES);
    }
}
