//! An open-addressing table of tags and entry numbers.
//!
//! A bucket is a `u64`: the tag in the high half, the entry's number plus one in the low half, 0 if empty. The tag
//! alone gives the home bucket, `tag * buckets / 2^32`, so that any number of buckets works and growth needs no
//! entry. Robin Hood probing keeps the buckets in the (cyclic) order of their homes: a search for something
//! absent ends early, and since homes ascend with tags, the table can be walked in the order of tags.

const EMPTY: u64 = 0;
const MIN_BUCKETS: usize = 8;
/// Buckets looked at together: one cache line's worth.
const WINDOW: usize = 8;
/// The table grows when it's fuller than this ratio, 0.85, …
const MAX_LOAD: (usize, usize) = (17, 20);
/// … by this factor, 1.4, to a load of 0.61.
const GROWTH: (usize, usize) = (7, 5);

#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    buckets: Box<[u64]>,
    used: usize,
}

const fn tag_of(bucket: u64) -> u32 {
    (bucket >> 32) as u32
}

const fn number_of(bucket: u64) -> u32 {
    (bucket as u32).wrapping_sub(1)
}

impl Table {
    /// Loads the ends of a tag's window, so that the processor's cache has it; the result means nothing.
    #[inline]
    pub(super) fn touch(&self, tag: u32) -> u64 {
        let home = self.home(tag);
        let end = self.buckets.len().min(home + WINDOW);
        self.buckets.get(home).copied().unwrap_or(EMPTY)
            | self.buckets.get(end.wrapping_sub(1)).copied().unwrap_or(EMPTY)
    }

    /// The first entry with that tag. Looks at a whole window without a branch that depends on what's found, which
    /// the processor couldn't predict.
    #[inline]
    pub(super) fn first_with_tag(&self, tag: u32) -> Option<u32> {
        let home = self.home(tag);
        let Some(window) = self.buckets.get(home..).and_then(<[u64]>::first_chunk::<WINDOW>) else {
            return self.find(tag, |_| true);
        };
        let mut found = EMPTY;
        for bucket in window.iter().rev() {
            found = if tag_of(*bucket) == tag { *bucket } else { found };
        }
        let [.., last] = *window;
        let goes_on = last != EMPTY && self.displacement(last, home + WINDOW - 1) >= WINDOW - 1;
        if found == EMPTY && goes_on {
            return self.find(tag, |_| true);
        }
        (found != EMPTY).then(|| number_of(found))
    }

    /// The first entry with that tag for which `matches` holds.
    pub(super) fn find(&self, tag: u32, mut matches: impl FnMut(u32) -> bool) -> Option<u32> {
        let home = self.buckets.get(self.home(tag)).copied().unwrap_or(EMPTY);
        if home == EMPTY {
            return None;
        }
        if tag_of(home) == tag && matches(number_of(home)) {
            return Some(number_of(home));
        }
        self.position_after_home(tag, matches)
            .and_then(|position| self.buckets.get(position))
            .map(|bucket| number_of(*bucket))
    }

    /// Adds an entry; the caller has checked that it isn't there.
    pub(super) fn insert(&mut self, tag: u32, number: u32) {
        if (self.used + 1) * MAX_LOAD.1 > self.buckets.len() * MAX_LOAD.0 {
            self.grow();
        }
        self.place((u64::from(tag) << 32) | u64::from(number.wrapping_add(1)));
        self.used += 1;
    }

    /// Removes the entry with that tag and number. Returns whether it was there.
    pub(super) fn remove(&mut self, tag: u32, number: u32) -> bool {
        let home = self.home(tag);
        let Some(bucket) = self.buckets.get(home) else {
            return false;
        };
        let mut hole = if tag_of(*bucket) == tag && *bucket != EMPTY && number_of(*bucket) == number {
            home
        } else {
            match self.position_after_home(tag, |other| other == number) {
                Some(position) => position,
                None => return false,
            }
        };
        // those behind that aren't at home move one back
        loop {
            let next = self.next(hole);
            let bucket = self.buckets[next];
            if bucket == EMPTY || self.displacement(bucket, next) == 0 {
                break;
            }
            self.buckets[hole] = bucket;
            hole = next;
        }
        self.buckets[hole] = EMPTY;
        self.used -= 1;
        true
    }

    /// Calls `visit` with all entries of one home after another (as pairs of tag and number, unordered), from the
    /// home of `first_tag` to the last, while it returns true. Returns whether it always did.
    pub(super) fn walk(&self, first_tag: u32, mut visit: impl FnMut(&mut Vec<(u32, u32)>) -> bool) -> bool {
        let buckets = self.buckets.len();
        let first = self.home(first_tag);
        let mut group = Vec::new();
        let mut group_home = first;
        // entries of the last homes may have gone past the end, to the beginning
        for step in first..2 * buckets {
            let position = step % buckets;
            let bucket = self.buckets[position];
            let home = self.home(tag_of(bucket));
            if step >= buckets && (bucket == EMPTY || home <= position) {
                break;
            }
            let wrapped = step < buckets && home > position;
            if bucket == EMPTY || wrapped || home < first {
                continue;
            }
            if home != group_home {
                if !group.is_empty() && !visit(&mut group) {
                    return false;
                }
                group.clear();
                group_home = home;
            }
            group.push((tag_of(bucket), number_of(bucket)));
        }
        group.is_empty() || visit(&mut group)
    }

    /// Bytes of memory.
    pub(super) fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.buckets.len() * size_of::<u64>()
    }

    #[inline]
    fn home(&self, tag: u32) -> usize {
        ((u64::from(tag) * self.buckets.len() as u64) >> 32) as usize
    }

    #[inline]
    fn next(&self, position: usize) -> usize {
        if position + 1 == self.buckets.len() {
            0
        } else {
            position + 1
        }
    }

    /// How far a bucket is from its home.
    #[inline]
    fn displacement(&self, bucket: u64, position: usize) -> usize {
        let home = self.home(tag_of(bucket));
        if position >= home {
            position - home
        } else {
            position + self.buckets.len() - home
        }
    }

    fn position_after_home(&self, tag: u32, mut matches: impl FnMut(u32) -> bool) -> Option<usize> {
        let mut position = self.home(tag);
        // one bucket is always empty, so this ends
        for distance in 1..self.buckets.len() {
            position = self.next(position);
            let bucket = *self.buckets.get(position)?;
            if bucket == EMPTY {
                return None;
            }
            if tag_of(bucket) == tag {
                if matches(number_of(bucket)) {
                    return Some(position);
                }
            } else if self.displacement(bucket, position) < distance {
                return None;
            }
        }
        None
    }

    /// Puts a bucket where the order of homes wants it. Returns the position that was empty before.
    fn place(&mut self, mut bucket: u64) -> usize {
        let mut position = self.home(tag_of(bucket));
        let mut distance = 0;
        loop {
            let other = self.buckets[position];
            if other == EMPTY {
                self.buckets[position] = bucket;
                return position;
            }
            let other_distance = self.displacement(other, position);
            if other_distance < distance {
                self.buckets[position] = bucket;
                bucket = other;
                distance = other_distance;
            }
            position = self.next(position);
            distance += 1;
        }
    }

    #[cold]
    fn grow(&mut self) {
        let buckets = (self.buckets.len() * GROWTH.0 / GROWTH.1).max(MIN_BUCKETS);
        // those that went past the end have the highest homes
        let wrapped = (0..self.buckets.len())
            .take_while(|position| {
                self.buckets[*position] != EMPTY && self.home(tag_of(self.buckets[*position])) > *position
            })
            .count();
        let old = std::mem::replace(&mut self.buckets, vec![EMPTY; buckets].into_boxed_slice());
        let (last, first) = old.split_at(wrapped);
        // the old order is nearly that of the new homes, so that most go right behind the one before
        let mut end = 0;
        let mut highest = 0;
        for bucket in first
            .iter()
            .chain(last)
            .copied()
            .filter(|bucket| *bucket != EMPTY)
        {
            let home = self.home(tag_of(bucket));
            let position = home.max(end);
            if home < highest || position >= self.buckets.len() {
                end = end.max(self.place(bucket) + 1);
            } else {
                self.buckets[position] = bucket;
                end = position + 1;
                highest = home;
            }
        }
    }

    #[cfg(test)]
    pub(super) fn check(&self) {
        let used = self.buckets.iter().filter(|bucket| **bucket != EMPTY).count();
        assert_eq!(used, self.used);
        assert!(used * MAX_LOAD.1 <= self.buckets.len() * MAX_LOAD.0);
        for (position, bucket) in self.buckets.iter().enumerate() {
            let next = self.next(position);
            let following = self.buckets[next];
            if following == EMPTY {
                continue;
            }
            let distance = self.displacement(following, next);
            if *bucket == EMPTY {
                assert_eq!(distance, 0, "a search would stop before bucket {next}");
            } else {
                assert!(
                    distance <= self.displacement(*bucket, position) + 1,
                    "out of order at bucket {next}"
                );
            }
        }
    }
}
