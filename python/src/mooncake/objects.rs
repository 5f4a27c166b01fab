//! Objects' bytes in memory of the caller's: straight where it's registered, through the staging buffer elsewhere.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Instant;

use kvstored_core::{Error, Result};
use kvstored_pool::{GetRequest, Piece, PoolClient};
use parking_lot::RwLock;

use super::codes::{INVALID_PARAMETERS, told};
use super::member::OpenPool;
use super::staging::Staged;

/// Bytes of objects that are fetched together.
const GROUP_BYTES: u64 = 64 << 20;

/// Memory that the caller registered.
#[derive(Default)]
pub struct Registered {
    by_address: RwLock<BTreeMap<usize, usize>>,
}

impl Registered {
    /// Registers memory, which the caller in Python vouches for until `unregister` has returned.
    pub fn register(&self, client: &PoolClient, address: usize, length: usize) -> Result<()> {
        if address.checked_add(length).is_none() {
            return Err(Error::invalid(format!(
                "memory of {length} bytes at {address:#x}"
            )));
        }
        // SAFETY: the caller in Python vouches for the memory.
        unsafe { client.register(address, length) }?;
        self.by_address.write().insert(address, length);
        Ok(())
    }

    /// Ends that.
    pub fn unregister(&self, client: &PoolClient, address: usize, deadline: Instant) -> Result<()> {
        client.unregister(address, deadline)?;
        self.by_address.write().remove(&address);
        Ok(())
    }

    fn holds(&self, piece: &Piece) -> bool {
        let all = self.by_address.read();
        let found = all.range(..=piece.address).next_back();
        found.is_some_and(|(start, length)| {
            (piece.address - start)
                .checked_add(piece.length)
                .is_some_and(|end| end <= *length)
        })
    }
}

/// One object and where its bytes are, or shall go.
struct Object<'a> {
    index: usize,
    key: &'a [u8],
    pieces: Vec<Piece>,
}

/// Objects in the caller's memory.
pub struct Scattered<'a> {
    objects: Vec<Object<'a>>,
}

impl<'a> Scattered<'a> {
    /// The objects whose addresses and lengths make sense; the others' outcome says that they don't.
    pub fn of(
        whole: &'a [(usize, Box<[u8]>)],
        addresses: &[Vec<usize>],
        lengths: &[Vec<usize>],
        outcomes: &mut [i64],
    ) -> Self {
        let mut objects = Vec::with_capacity(whole.len());
        for (index, key) in whole {
            match pieces(addresses.get(*index), lengths.get(*index)) {
                Some(pieces) => objects.push(Object {
                    index: *index,
                    key,
                    pieces,
                }),
                None => {
                    if let Some(outcome) = outcomes.get_mut(*index) {
                        *outcome = INVALID_PARAMETERS;
                    }
                }
            }
        }
        Self { objects }
    }

    /// The place of each object among the caller's.
    pub fn indices(&self) -> impl Iterator<Item = usize> {
        self.objects.iter().map(|object| object.index)
    }

    /// Memory for those whose own isn't registered, with their bytes in it if they are to be put. Fails with `Busy` where
    /// there's none at the deadline, and with `NoSpace`.
    pub fn stage(self, open: &OpenPool, puts: bool, deadline: Instant) -> Result<StagedObjects<'a>> {
        let loose = |object: &&Object<'_>| !object.pieces.iter().all(|piece| open.registered.holds(piece));
        let total: Option<usize> = self
            .objects
            .iter()
            .filter(loose)
            .map(|object| Piece::total(&object.pieces).ok())
            .try_fold(0usize, |sum, bytes| {
                sum.checked_add(usize::try_from(bytes?).ok()?)
            });
        let total = total.ok_or_else(|| Error::invalid("the objects' lengths overflow"))?;
        if total == 0 {
            let direct = self.objects.into_iter().map(|object| (object, None));
            return Ok(StagedObjects {
                objects: direct.collect(),
                staged: None,
            });
        }
        let staged = open.staging.take(total, deadline)?;
        let mut objects = Vec::with_capacity(self.objects.len());
        let mut next = 0;
        for object in self.objects {
            if !loose(&&object) {
                objects.push((object, None));
                continue;
            }
            let start = next;
            for piece in &object.pieces {
                if puts {
                    staged.copy_in(next, *piece);
                }
                next += piece.length;
            }
            let piece = staged.piece(start, next - start);
            objects.push((object, Some((start, [piece]))));
        }
        Ok(StagedObjects {
            objects,
            staged: Some(staged),
        })
    }
}

/// Pieces from addresses and lengths; `None` where they don't belong together.
fn pieces(addresses: Option<&Vec<usize>>, lengths: Option<&Vec<usize>>) -> Option<Vec<Piece>> {
    let (addresses, lengths) = (addresses?, lengths?);
    if addresses.len() != lengths.len() {
        return None;
    }
    addresses
        .iter()
        .zip(lengths)
        .filter(|(_, length)| **length > 0)
        .map(|(address, length)| {
            let possible = *address > 0 && address.checked_add(*length).is_some();
            possible.then_some(Piece {
                address: *address,
                length: *length,
            })
        })
        .collect()
}

/// Where an object's bytes are staged: from there on, as one piece.
type Place = (usize, [Piece; 1]);

/// Objects in registered memory.
pub struct StagedObjects<'a> {
    objects: Vec<(Object<'a>, Option<Place>)>,
    staged: Option<Staged>,
}

impl StagedObjects<'_> {
    /// Key and registered pieces of each.
    pub fn objects(&self) -> impl Iterator<Item = (&[u8], &[Piece])> {
        self.objects.iter().map(|(object, place)| match place {
            Some((_, piece)) => (object.key, &piece[..]),
            None => (object.key, &object.pieces[..]),
        })
    }

    /// Copies the first bytes of the object at that position to where the caller wants them, if they aren't there.
    pub fn copy_out(&self, position: usize, bytes: usize) {
        let (Some((object, Some((start, _)))), Some(staged)) = (self.objects.get(position), &self.staged)
        else {
            return;
        };
        let mut done = 0;
        for piece in &object.pieces {
            let length = piece.length.min(bytes - done);
            if length == 0 {
                break;
            }
            staged.copy_out(
                start + done,
                Piece {
                    address: piece.address,
                    length,
                },
            );
            done += length;
        }
    }
}

/// Objects of some keys, fetched to the staging buffer.
pub struct Fetched {
    staged: Option<Staged>,
    /// Where each lies; nowhere for one that isn't there.
    places: Vec<Range<usize>>,
}

impl Fetched {
    /// Bytes of each.
    pub fn lengths(&self) -> impl Iterator<Item = usize> {
        self.places.iter().map(ExactSizeIterator::len)
    }

    /// Copies those of one.
    pub fn copy(&self, position: usize, target: &mut [u8]) {
        if let (Some(place), Some(staged)) = (self.places.get(position), &self.staged)
            && place.len() == target.len()
            && !target.is_empty()
        {
            staged.read(place.start, target);
        }
    }
}

/// A key, and the bytes of its object.
pub type Sized = (Option<Box<[u8]>>, u64);

/// Keys with the sizes of their objects; none and 0 for those that aren't there.
pub fn sizes(open: &OpenPool, keys: &[String]) -> Vec<Sized> {
    let mut outcomes = vec![0; keys.len()];
    let whole = open.keys(keys, &mut outcomes);
    let wanted: Vec<&[u8]> = whole.iter().map(|(_, key)| &**key).collect();
    let found = open.client.sizes(&wanted, open.deadline());
    let mut all: Vec<Sized> = keys.iter().map(|_| (None, 0)).collect();
    for ((index, key), size) in whole.into_iter().zip(found) {
        match size {
            Ok(size) => {
                if let Some(place) = all.get_mut(index) {
                    *place = (Some(key), size);
                }
            }
            Err(error) => drop(told(&error, "a get")),
        }
    }
    all
}

/// Parts of a list of objects that are fetched together, so that they don't take more memory than need be.
pub fn groups(all: &[Sized]) -> Vec<Range<usize>> {
    let mut groups = Vec::new();
    let (mut start, mut bytes) = (0, 0u64);
    for (index, (_, size)) in all.iter().enumerate() {
        if index > start && bytes.saturating_add(*size) > GROUP_BYTES {
            groups.push(start..index);
            (start, bytes) = (index, 0);
        }
        bytes = bytes.saturating_add(*size);
    }
    if start < all.len() {
        groups.push(start..all.len());
    }
    groups
}

/// Fetches objects; one that can't be has no bytes.
pub fn fetch(open: &OpenPool, wanted: &[Sized]) -> Fetched {
    let nothing = || Fetched {
        staged: None,
        places: wanted.iter().map(|_| 0..0).collect(),
    };
    let total = wanted.iter().map(|(_, size)| *size).sum::<u64>();
    if total == 0 {
        return nothing();
    }
    let deadline = open.deadline();
    let staged = match open.staging.take(total as usize, deadline) {
        Ok(staged) => staged,
        Err(error) => {
            told(&error, "gets");
            return nothing();
        }
    };
    let mut places = Vec::with_capacity(wanted.len());
    let mut next = 0;
    for (_, size) in wanted {
        places.push(next..next + *size as usize);
        next += *size as usize;
    }
    let pieces: Vec<[Piece; 1]> = places
        .iter()
        .map(|place| [staged.piece(place.start, place.len())])
        .collect();
    let asked: Vec<usize> = (0..wanted.len())
        .filter(|at| {
            wanted
                .get(*at)
                .is_some_and(|(key, size)| key.is_some() && *size > 0)
        })
        .collect();
    let requests: Vec<GetRequest<'_>> = asked
        .iter()
        .filter_map(|at| {
            let (key, pieces) = (wanted.get(*at)?.0.as_deref()?, pieces.get(*at)?);
            Some(GetRequest { key, pieces })
        })
        .collect();
    let done = open.client.get_batch(&requests, deadline);
    for (at, outcome) in asked.into_iter().zip(done) {
        if let Some(place) = places.get_mut(at) {
            let bytes = outcome.unwrap_or_else(|error| {
                told(&error, "a get");
                0
            });
            *place = place.start..place.start + bytes as usize;
        }
    }
    Fetched {
        staged: Some(staged),
        places,
    }
}
