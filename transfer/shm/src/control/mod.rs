//! Who is at work on which range of an owner's memory, and how the owner takes a range back.
//!
//! The owner has a [`ControlPage`] of slots, each with an *epoch*, and publishes a range under a slot and its
//! epoch of that time. A peer that wants to touch the range counts itself in at the slot, checks that the
//! epoch is still the one it was told, touches the range, and counts itself out ([`PeerControl::enter`], and
//! dropping [`InFlight`]). To take the range back, the owner advances the epoch and waits until nobody is
//! counted in ([`ControlPage::advance`], [`ControlPage::wait_idle`]). After that nobody touches the range any
//! more: who came too late finds another epoch.
//!
//! # Pages
//!
//! | page | written by | mapped by |
//! | --- | --- | --- |
//! | epochs: a `u64` for each slot | the owner; a seal keeps others from it | owner, all peers |
//! | counts of one peer: a `u32` for each slot | that peer | owner, that peer |
//!
//! The owner makes all of them, and seals them against being shrunk, so nobody can make another's access
//! fault. A peer has no descriptor of another's counts. Rubbish in a peer's counts keeps the owner waiting,
//! until its deadline, for that peer alone; wrong wake-ups are answered with a pause after a few, so they
//! don't keep the owner busy either. A peer doesn't trust the owner's epochs with anything but to stop:
//! numbers of slots are checked against the mapping.
//!
//! What this can't do: a peer that ignores the epochs can touch whatever memory it has mapped. Map for
//! reading what needs no writing ([`crate::Sharing::ReadOnly`]).
//!
//! # Memory order
//!
//! Two things must never happen at once: the peer sees the old epoch, and the owner doesn't see the peer's
//! count. Each side stores, then loads what the other stores (the pattern of Dekker's algorithm), so neither
//! release nor acquire is enough; a sequentially consistent fence stands between the store and the load on
//! both sides:
//!
//! ```text
//! peer                              owner
//! count += 1      (relaxed)         epoch += 1      (release)
//! fence           (seq_cst)         fence           (seq_cst)
//! epoch == mine?  (acquire)         count == 0?     (acquire)
//! ... touch the range ...           ... reuse the range ...
//! count -= 1      (release)
//! fence           (seq_cst)
//! epoch != mine?  then wake the owner
//! ```
//!
//! If the peer's fence comes first in the order of fences, the owner sees the count; if the owner's does, the
//! peer sees the new epoch. The count goes down with *release* and is read with *acquire*, so whatever the
//! peer did to the range comes before whatever the owner does next; increments and decrements are
//! read-modify-writes, which keep the release sequences of other threads of the peer intact. The second fence
//! pairs with the owner's in the same way: either the owner sees the decrement, or the peer sees the new
//! epoch and wakes it. The owner sleeps on the count itself (a futex), which the kernel compares with what
//! the owner saw, so a wake-up can't fall in between. Peers make no system call unless a release is going on.
//! `tests/model.rs` checks all interleavings of this under loom, and that it fails without the fences.
//!
//! # Peers that die or stop
//!
//! Counts of a peer whose process has exited (all threads, as its pidfd tells) count for nothing. A stopped
//! peer's do count: it may go on at any time, so the owner answers `Busy` and must not reuse the range.

mod attachment;
mod layout;
mod page;
mod peer;
pub(crate) mod protocol;

pub use attachment::AttachmentId;
pub use layout::MAX_SLOTS;
pub use page::{Attached, ControlPage, MAX_ATTACHMENTS};
pub use peer::{InFlight, PeerControl};
