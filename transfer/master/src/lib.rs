//! The master of the memory pool: it decides which node holds which object, and never touches memory itself.
//!
//! [`state`] is the state machine, without I/O; [`server`] puts it behind gRPC, and [`client`] asks it. Nodes are the
//! truth: a master that starts, or takes over, learns from their announcements what there is. Several masters elect one
//! leader by etcd, and nodes obey only the highest epoch that they know.

pub mod client;
mod ha;
mod key;
pub mod server;
mod settings;
pub mod state;
pub mod token;
mod types;
mod wire;

#[cfg(fuzzing)]
pub use wire::lane::check_answers;

pub use settings::MasterSettings;
pub use token::{TOKEN_BYTES, TokenKey, TokenRange};
pub use types::*;
