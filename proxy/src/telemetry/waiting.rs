//! Who waits for an answer, and who left without one, until it is due. Each worker has its own.

use std::ops::Range;

use super::Slice;

/// Seconds are counted from 0 and by the meter: how long one lasts is not known here.
#[derive(Debug)]
pub(super) struct Waiting {
    places: Vec<Place>,
    /// The first of the free places; [`NONE`]: there is none.
    free: u32,
    /// What begins now begins in this second.
    second: u32,
    /// What began before this one has been due.
    due: u32,
    /// Places that are kept for those who have left.
    left: usize,
}

/// The second in which the wait began is kept in 32 bits, which is for 136 years.
#[derive(Clone, Copy, Debug)]
enum Place {
    Free { next: u32 },
    Taken { key: u64, began: u32, slice: Slice, left: bool },
}

const NONE: u32 = u32::MAX;

/// More than these have no place once they have left: then they count as answered, or clients that come and go could
/// fill the memory.
const MOST_LEFT: usize = 1 << 16;

impl Default for Waiting {
    fn default() -> Self {
        Self { places: Vec::new(), free: NONE, second: 0, due: 0, left: 0 }
    }
}

impl Waiting {
    /// The place of one who begins to wait, until [`Self::answered`] or [`Self::left`] is told.
    pub(super) fn begin(&mut self, key: u64, slice: Slice) -> u32 {
        let place = Place::Taken { key, began: self.second, slice, left: false };
        match self.places.get_mut(self.free as usize) {
            Some(free) => {
                let index = self.free;
                if let Place::Free { next } = *free {
                    self.free = next;
                }
                *free = place;
                index
            }
            None => {
                self.places.push(place);
                self.places.len() as u32 - 1
            }
        }
    }

    /// The wait is over.
    pub(super) fn answered(&mut self, place: u32) {
        if let Some(place_of) = self.places.get_mut(place as usize) {
            *place_of = Place::Free { next: self.free };
            self.free = place;
        }
    }

    /// Nobody waits any more, and no answer came.
    pub(super) fn left(&mut self, place: u32) {
        match self.places.get_mut(place as usize) {
            Some(Place::Taken { began, left, .. }) if *began >= self.due && self.left < MOST_LEFT => {
                *left = true;
                self.left += 1;
            }
            _ => self.answered(place),
        }
    }

    /// Another second begins. `due`: those before it whose answers are due as of now; together with all before them they
    /// will not be asked for again. `overdue`: gets each one of them that has none.
    pub(super) fn next_second(&mut self, due: Range<u32>, mut overdue: impl FnMut(Slice, u64)) {
        self.second += 1;
        if due.end <= self.due {
            return;
        }
        self.due = due.end;
        while matches!(self.places.last(), Some(Place::Free { .. })) {
            self.places.pop();
        }
        // From the last to the first, so that low places are taken first and the high ones are given back.
        self.free = NONE;
        for (index, place) in self.places.iter_mut().enumerate().rev() {
            if let Place::Taken { key, began, slice, left } = *place {
                if due.contains(&began) {
                    overdue(slice, key);
                }
                if !(left && began < due.end) {
                    continue;
                }
                self.left -= 1;
            }
            *place = Place::Free { next: self.free };
            self.free = index as u32;
        }
        // After a bad hour.
        if self.places.capacity() > 4 * self.places.len() + 1024 {
            self.places.shrink_to(2 * self.places.len());
        }
    }
}

#[cfg(test)]
impl Waiting {
    /// Places that are taken.
    pub(super) fn taken(&self) -> usize {
        self.places.iter().filter(|place| matches!(place, Place::Taken { .. })).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_left_keep_their_places_until_their_answers_are_due_and_no_more_than_so_many() {
        let mut waiting = Waiting::default();
        for key in 0..(MOST_LEFT as u64 + 10) {
            let place = waiting.begin(key, Slice::Green);
            waiting.left(place);
        }
        assert_eq!(waiting.taken(), MOST_LEFT);
        let mut overdue = 0;
        waiting.next_second(0..0, |_, _| overdue += 1);
        assert_eq!((overdue, waiting.taken()), (0, MOST_LEFT));
        waiting.next_second(0..1, |_, _| overdue += 1);
        assert_eq!((overdue, waiting.taken()), (MOST_LEFT, 0));
        let place = waiting.begin(1, Slice::Green);
        waiting.left(place);
        assert_eq!(waiting.taken(), 1, "there is room again");
        waiting.next_second(1..2, |_, _| {});
        waiting.next_second(2..3, |_, _| {});
        assert!(waiting.places.capacity() <= 1024, "{}", waiting.places.capacity());
    }

    #[test]
    fn a_place_takes_16_bytes() {
        assert_eq!(size_of::<Place>(), 16);
    }
}
