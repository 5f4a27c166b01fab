//! Settings that are words with a meaning, checked when they are read.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use kvstored_core::Pipeline;
use kvstored_core::eviction::PolicyKind;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A word, as text, of a type that checks it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word<T>(pub T);

/// What [`Word`] needs to know of a type.
pub trait Meaning: Sized + fmt::Display {
    /// Reads the text; the error says what is wrong with it.
    fn read(text: &str) -> Result<Self, String>;
    /// The type's JSON schema.
    fn schema() -> Schema {
        json_schema!({"type": "string"})
    }
}

impl<T: Meaning> FromStr for Word<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        T::read(text).map(Self)
    }
}

impl<T: Meaning> Serialize for Word<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de, T: Meaning> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

impl<T: Meaning> JsonSchema for Word<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Word".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        T::schema()
    }
}

impl Meaning for Pipeline {
    fn read(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|error: kvstored_core::Error| error.message().to_owned())
    }
}

/// An eviction policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy(pub PolicyKind);

impl fmt::Display for Policy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0.name())
    }
}

impl Meaning for Policy {
    fn read(text: &str) -> Result<Self, String> {
        text.parse()
            .map(Self)
            .map_err(|error: kvstored_core::Error| error.message().to_owned())
    }

    fn schema() -> Schema {
        json_schema!({"type": "string", "enum": PolicyKind::ALL.map(PolicyKind::name)})
    }
}

/// Defines an enumeration of fixed words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $what:literal, { $($(#[$case_doc:meta])* $case:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub enum $name { $($(#[$case_doc])* $case),+ }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(match self { $(Self::$case => $word),+ })
            }
        }

        impl Meaning for $name {
            fn read(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$case),)+
                    _ => Err(format!(concat!($what, " \"{}\" is unknown; known are {}"), text, [$($word),+].join(", "))),
                }
            }

            fn schema() -> Schema {
                json_schema!({"type": "string", "enum": [$($word),+]})
            }
        }
    };
}

words!(
    /// How the Posix tier reads and writes.
    IoEngine, "I/O engine", {
        /// io_uring where the system allows it, psync elsewhere.
        #[default]
        Auto = "auto",
        /// io_uring, and an error where it's refused.
        Uring = "uring",
        /// Threads with positioned system calls.
        Psync = "psync",
        /// UCM's word for its asynchronous engine; ours is io_uring.
        Aio = "aio",
    }
);

words!(
    /// How log lines are written.
    LogFormat, "log format", {
        /// For people.
        #[default]
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
);

/// Where the daemon listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Path of the Unix socket.
    pub socket: PathBuf,
}

impl fmt::Display for Listen {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "unix:{}", self.socket.display())
    }
}

impl Meaning for Listen {
    fn read(text: &str) -> Result<Self, String> {
        /// `sun_path` of `sockaddr_un`, without the final zero.
        const MAX_SOCKET_PATH_BYTES: usize = 107;
        match text.strip_prefix("unix:") {
            None => Err(format!("address \"{text}\" is not of the form unix:PATH")),
            Some("") => Err(format!("address \"{text}\" has no path")),
            Some(path) if path.len() > MAX_SOCKET_PATH_BYTES => Err(format!(
                "socket path \"{path}\" has {} bytes; the system takes at most {MAX_SOCKET_PATH_BYTES}",
                path.len()
            )),
            Some(path) => Ok(Self { socket: path.into() }),
        }
    }

    fn schema() -> Schema {
        json_schema!({"type": "string", "pattern": "^unix:."})
    }
}

/// Where the HTTP endpoints are, if anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpAddress {
    /// No HTTP.
    Off,
    /// `HOST:PORT`.
    At(String),
}

impl fmt::Display for HttpAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => formatter.write_str("off"),
            Self::At(address) => formatter.write_str(address),
        }
    }
}

impl Meaning for HttpAddress {
    fn read(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let port = text
            .rsplit_once(':')
            .filter(|(host, _)| !host.is_empty())
            .map(|(_, port)| port.parse::<u16>());
        match port {
            Some(Ok(_)) => Ok(Self::At(text.to_owned())),
            _ => Err(format!("HTTP address \"{text}\" is neither HOST:PORT nor off")),
        }
    }
}

/// A log level or a filter such as `info,kvstored_backends=debug`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLevel(pub String);

impl fmt::Display for LogLevel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Meaning for LogLevel {
    fn read(text: &str) -> Result<Self, String> {
        let is_level = |word: &str| ["off", "error", "warn", "info", "debug", "trace"].contains(&word);
        let fits = |part: &str| match part.split_once('=') {
            None => is_level(part),
            Some((target, level)) => !target.is_empty() && is_level(level),
        };
        if text.split(',').map(str::trim).all(fits) {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!(
                "log level \"{text}\" is neither off, error, warn, info, debug or trace nor a list of TARGET=LEVEL"
            ))
        }
    }
}
