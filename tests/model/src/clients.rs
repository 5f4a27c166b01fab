//! What readers do on their own; what writers do is all at a node or a master.

use crate::PoolModel;
use crate::state::{Get, State};

impl PoolModel {
    /// A reader asks for an object.
    pub(crate) fn ask(state: &mut State, reader: usize, object: usize) -> Option<()> {
        let at = state.now;
        let get = state.gets.get_mut(reader)?;
        if *get != Get::Idle {
            return None;
        }
        *get = Get::Asked {
            object: object as u8,
            at,
        };
        Some(())
    }

    /// The bytes of a checked read are taken, whatever happened since, and handed to the caller.
    pub(crate) fn take(state: &mut State, reader: usize) -> Option<()> {
        let Get::Inside { object, range, .. } = *state.gets.get(reader)? else {
            return None;
        };
        let bytes = state.ranges.get(usize::from(range))?.bytes;
        *state.gets.get_mut(reader)? = Get::Accepted { object, bytes };
        Some(())
    }
}
