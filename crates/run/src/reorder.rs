//! [`Reorder`]: gives rows that finish in any order back in the order of the source.

use std::collections::VecDeque;

/// A slot for each row that was read and not yet written, in order.
pub(crate) struct Reorder<T> {
    /// Number of the row in the first slot.
    first: u64,
    slots: VecDeque<Option<T>>,
}

impl<T> Reorder<T> {
    /// Begins with row `first`.
    pub(crate) fn new(first: u64) -> Self {
        Self { first, slots: VecDeque::new() }
    }

    /// What is finished and waits, in order.
    pub(crate) fn waiting(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots.iter_mut().flatten()
    }

    /// Takes a finished row.
    pub(crate) fn put(&mut self, number: u64, value: T) {
        let Some(at) = number.checked_sub(self.first) else { return };
        let at = at as usize;
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, || None);
        }
        self.slots[at] = Some(value);
    }

    /// The next row in order, if it is finished.
    pub(crate) fn next(&mut self) -> Option<T> {
        let value = self.slots.front_mut()?.take()?;
        self.slots.pop_front();
        self.first += 1;
        Some(value)
    }

    /// What is finished, in order, leaving out what is not.
    pub(crate) fn rest(self) -> impl Iterator<Item = T> {
        self.slots.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_order_in_one_order_out() {
        let mut reorder = Reorder::new(0);
        reorder.put(2, "c");
        reorder.put(0, "a");
        assert_eq!(reorder.next(), Some("a"));
        assert_eq!(reorder.next(), None);
        reorder.put(4, "e");
        reorder.put(1, "b");
        assert_eq!((reorder.next(), reorder.next(), reorder.next()), (Some("b"), Some("c"), None));
        assert_eq!(reorder.rest().collect::<Vec<_>>(), ["e"]);
    }
}
