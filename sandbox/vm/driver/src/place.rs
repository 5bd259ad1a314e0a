//! Allocation of a VM's device slots.

use parking_lot::{Mutex, MutexGuard};

use crate::error::DriverError;

/// The longest device id: virtio-blk's serial number has 20 bytes.
const ID_MAX: usize = 20;

/// A fixed number of slots, each for one device.
#[derive(Debug)]
pub(crate) struct Places(Mutex<Vec<Option<String>>>);

impl Places {
    /// `count` free slots.
    pub(crate) fn new(count: usize) -> Self {
        Self(Mutex::new(vec![None; count]))
    }

    fn places(&self) -> MutexGuard<'_, Vec<Option<String>>> {
        self.0.lock()
    }

    /// Allocates a slot for `id`.
    pub(crate) fn take(&self, id: &str) -> Result<usize, DriverError> {
        let fits =
            (1..=ID_MAX).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric());
        if !fits {
            return Err(DriverError::DeviceId(id.to_owned()));
        }
        let mut places = self.places();
        if places.iter().flatten().any(|taken| taken == id) {
            return Err(DriverError::Taken(id.to_owned()));
        }
        let count = places.len();
        match places.iter_mut().enumerate().find(|(_, place)| place.is_none()) {
            Some((at, place)) => {
                *place = Some(id.to_owned());
                Ok(at)
            }
            None => Err(DriverError::Full(count)),
        }
    }

    /// Whether `id` has a slot.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.places().iter().flatten().any(|taken| taken == id)
    }

    /// Frees the slot of `id`.
    pub(crate) fn free(&self, id: &str) {
        for place in self.places().iter_mut() {
            if place.as_deref() == Some(id) {
                *place = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_allocated_once_and_reused() {
        let places = Places::new(2);
        assert_eq!((places.take("a").unwrap(), places.take("b").unwrap()), (0, 1));
        assert_eq!(places.take("a").unwrap_err().to_string(), "device a is already plugged in");
        assert!(matches!(places.take("c"), Err(DriverError::Full(2))));
        places.free("a");
        assert!(!places.has("a") && places.has("b"));
        assert_eq!(places.take("c").unwrap(), 0);
        for wrong in ["", "a,b", "a/b", "123456789012345678901"] {
            assert!(matches!(places.take(wrong), Err(DriverError::DeviceId(_))), "{wrong:?}");
        }
    }
}
