//! The order of loads, stores and fences, apart from the memory that they go to, so that a model can check
//! it. The reasons are in the documentation of [`super`].

/// One slot, as one peer sees it.
pub(crate) trait PeerSide {
    /// Loads the epoch (acquire).
    fn epoch(&self) -> u64;
    /// Adds one to the peer's count (relaxed).
    fn count_in(&self);
    /// Takes one from the peer's count (release).
    fn count_out(&self);
    /// A sequentially consistent fence.
    fn fence(&self);
    /// Wakes whoever sleeps on the peer's count.
    fn wake(&self);
}

/// Counts the caller in. False, and nothing counted, if the epoch is another.
pub(crate) fn enter(slot: &impl PeerSide, epoch: u64) -> bool {
    // only saves the owner a disturbance: late peers don't touch the count that it waits for
    if slot.epoch() != epoch {
        return false;
    }
    slot.count_in();
    slot.fence();
    if slot.epoch() == epoch {
        return true;
    }
    leave(slot, epoch);
    false
}

/// Counts out a caller that was counted in under that epoch.
pub(crate) fn leave(slot: &impl PeerSide, epoch: u64) {
    slot.count_out();
    slot.fence();
    if slot.epoch() != epoch {
        slot.wake();
    }
}

/// One slot, as the owner sees it.
pub(crate) trait OwnerSide {
    /// Adds one to the epoch (release) and returns the new one.
    fn bump(&self) -> u64;
    /// A sequentially consistent fence.
    fn fence(&self);
}

/// Shuts the slot for everybody who was told the epoch until now. What follows sees the counts of all who got
/// in.
pub(crate) fn advance(slot: &impl OwnerSide) -> u64 {
    let epoch = slot.bump();
    slot.fence();
    epoch
}
