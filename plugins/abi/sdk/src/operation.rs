//! An operation and the buffer lent with it.

use crate::abi;
use crate::failure::{Failure, Kind};
use crate::host::Host;

/// How safe a written block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Durability {
    /// Lost with the process.
    Memory = abi::MEMORY,
    /// Survives the process, not a power loss.
    Tier = abi::TIER,
    /// Survives a power loss.
    Durable = abi::DURABLE,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Fill the buffer with the block's image.
    Read,
    /// Store the buffer, at least that safely or as safely as the tier can.
    Write(Durability),
}

/// Memory of the host that buffers lie in: a file that's mapped from its start. For systems that move bytes from and to
/// memory that was registered with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The file's descriptor. It's the host's: duplicate it, within the call that brought the operation, to keep it.
    pub file: i32,
    /// Names the mapping in this process; never used again for another.
    pub id: u64,
    /// Address of the first byte.
    pub base: usize,
    /// Bytes.
    pub length: usize,
}

/// One operation: a block, what to do, and a buffer that is this operation's until it ends.
///
/// Ends by [`Operation::succeed`] or [`Operation::fail`]; one that is dropped fails with [`Kind::Internal`], so none is
/// forgotten and none ends twice.
#[derive(Debug)]
pub struct Operation {
    host: Host,
    ticket: u64,
    key: abi::Key,
    action: Action,
    data: *mut u8,
    length: usize,
    memory: Option<Memory>,
    ended: bool,
}

// SAFETY: the buffer is lent to whoever has the operation, on whichever thread.
unsafe impl Send for Operation {}

impl Operation {
    /// Takes an operation over.
    ///
    /// # Safety
    /// `operation` must be one that the host submits now, padded with zeros if it was shorter, and be taken over once.
    pub(crate) unsafe fn take(host: Host, operation: &abi::Operation) -> Self {
        let durability = match operation.durability {
            abi::MEMORY => Durability::Memory,
            abi::TIER => Durability::Tier,
            _ => Durability::Durable,
        };
        // SAFETY: the host lends the description for the call.
        let memory = unsafe { operation.memory.as_ref() }.map(|memory| Memory {
            file: memory.file,
            id: memory.id,
            base: memory.base as usize,
            length: memory.length as usize,
        });
        Self {
            memory,
            host,
            ticket: operation.ticket,
            key: operation.key,
            action: if operation.action == abi::WRITE {
                Action::Write(durability)
            } else {
                Action::Read
            },
            data: operation.data.cast(),
            length: operation.length as usize,
            ended: false,
        }
    }

    /// The block.
    pub fn key(&self) -> &abi::Key {
        &self.key
    }

    /// What to do.
    pub fn action(&self) -> Action {
        self.action
    }

    /// The memory that the buffer lies in, if it can be registered.
    pub fn memory(&self) -> Option<&Memory> {
        self.memory.as_ref()
    }

    /// Bytes of the buffer, all of which are to be moved.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The buffer, for the kernel or a device; aligned to 4096 bytes. Valid until the operation ends. Other processes may
    /// map the same memory: don't form references to it, and for a write don't change it.
    pub fn address(&self) -> *mut u8 {
        self.data
    }

    /// Copies out of the buffer. Fails with `InvalidInput` outside of it.
    pub fn copy_out(&self, offset: usize, destination: &mut [u8]) -> Result<(), Failure> {
        self.check(offset, destination.len())?;
        // SAFETY: the range lies in the lent buffer, which a slice of ours can't overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(self.data.add(offset), destination.as_mut_ptr(), destination.len());
        }
        Ok(())
    }

    /// A copy of the whole buffer. Fails with `NoSpace` if there's no memory for it.
    pub fn image(&self) -> Result<Box<[u8]>, Failure> {
        let mut image = Vec::new();
        image
            .try_reserve_exact(self.length)
            .map_err(|_| Failure::new(Kind::NoSpace, format!("no memory for {} bytes", self.length)))?;
        // SAFETY: as in `copy_out`; the vector has room for that many bytes, all of which are there afterwards.
        unsafe {
            std::ptr::copy_nonoverlapping(self.data, image.as_mut_ptr(), self.length);
            image.set_len(self.length);
        }
        Ok(image.into_boxed_slice())
    }

    /// Copies into the buffer of a read. Fails with `InvalidInput` outside of it and for a write.
    pub fn copy_in(&mut self, offset: usize, source: &[u8]) -> Result<(), Failure> {
        self.check(offset, source.len())?;
        if self.action != Action::Read {
            return Err(Failure::new(
                Kind::InvalidInput,
                "a write's buffer can't be changed",
            ));
        }
        // SAFETY: as in `copy_out`; a read's buffer is the operation's alone.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), self.data.add(offset), source.len()) };
        Ok(())
    }

    /// Ends the operation: all of it is done.
    pub fn succeed(mut self) {
        self.ended = true;
        self.host.complete(self.ticket, Ok(self.length as u64));
    }

    /// Ends the operation: nothing is done.
    pub fn fail(mut self, failure: Failure) {
        self.ended = true;
        self.host.complete(self.ticket, Err(&failure));
    }

    /// Ends the operation one way or the other.
    pub fn end(self, outcome: Result<(), Failure>) {
        match outcome {
            Ok(()) => self.succeed(),
            Err(failure) => self.fail(failure),
        }
    }

    fn check(&self, offset: usize, length: usize) -> Result<(), Failure> {
        if offset.checked_add(length).is_some_and(|end| end <= self.length) {
            return Ok(());
        }
        let message = format!("bytes {offset}+{length} are outside the buffer's {}", self.length);
        Err(Failure::new(Kind::InvalidInput, message))
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if !self.ended {
            let failure = Failure::new(Kind::Internal, "the plugin dropped the operation");
            self.host.complete(self.ticket, Err(&failure));
        }
    }
}
