//! What a machine has of memory and processors, and what it may get.

use crate::check::SECTION;
use crate::error::DriverError;
use crate::vmm::Machine;

/// A machine's size. Memory comes in modules, of which only so many fit.
#[derive(Debug)]
pub(crate) struct Growth {
    vcpus: u32,
    max_vcpus: u32,
    memory: u64,
    max_memory: u64,
    modules: u64,
    max_modules: u64,
}

/// How many modules `machine` needs room for, where `most` fit.
pub(crate) fn modules(machine: &Machine, most: u64) -> u64 {
    ((machine.max_memory - machine.memory) / SECTION).min(most)
}

impl Growth {
    /// A machine as it boots, in which at most `modules` fit.
    pub(crate) fn of(machine: &Machine, modules: u64) -> Self {
        let Machine { vcpus, max_vcpus, memory, max_memory, .. } = *machine;
        Self { vcpus, max_vcpus, memory, max_memory, modules: 0, max_modules: modules }
    }

    /// Refuses more than the machine was made for.
    pub(crate) fn check(&self, vcpus: u32, memory: u64) -> Result<(), DriverError> {
        if vcpus > self.max_vcpus {
            let (asked, most) = (vcpus.into(), self.max_vcpus.into());
            return Err(DriverError::TooMuch { asked, unit: "processors", most });
        }
        if memory > self.max_memory {
            let most = self.max_memory;
            return Err(DriverError::TooMuch { asked: memory, unit: "bytes", most });
        }
        Ok(())
    }

    /// The bytes of the next module so that there are `memory` in all; 0 if there are already.
    pub(crate) fn next_module(&self, memory: u64) -> u64 {
        let missing = memory.saturating_sub(self.memory).div_ceil(SECTION) * SECTION;
        match missing > 0 && self.modules + 1 == self.max_modules {
            // The last one takes all that is left, so that no growth is ever refused.
            true => self.max_memory - self.memory,
            false => missing,
        }
    }

    /// Bytes that the machine has.
    pub(crate) fn memory(&self) -> u64 {
        self.memory
    }

    /// Modules plugged in so far.
    pub(crate) fn modules(&self) -> u64 {
        self.modules
    }

    /// Processors that the machine has.
    pub(crate) fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// A module of `size` bytes was plugged in.
    pub(crate) fn got_module(&mut self, size: u64) {
        self.modules += 1;
        self.memory += size;
    }

    /// There are `vcpus` processors now.
    pub(crate) fn got_vcpus(&mut self, vcpus: u32) {
        self.vcpus = vcpus;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::check::tests::machine;

    #[test]
    fn memory_grows_by_sections_and_never_shrinks() {
        let mut machine = machine(Path::new("/run/m"));
        machine.max_memory = 6 * SECTION;
        let mut growth = Growth::of(&machine, modules(&machine, 2));
        assert_eq!(growth.next_module(SECTION), 0);
        assert_eq!(growth.next_module(2 * SECTION), 0);
        assert_eq!(growth.next_module(2 * SECTION + 1), SECTION);
        assert_eq!(growth.next_module(4 * SECTION), 2 * SECTION);
        growth.got_module(SECTION);
        assert_eq!(growth.next_module(3 * SECTION), 0);
        assert_eq!(growth.next_module(3 * SECTION + 1), 3 * SECTION);
        growth.check(2, 6 * SECTION).unwrap();
        let vcpus = growth.check(3, 0).unwrap_err().to_string();
        assert_eq!(vcpus, "the machine cannot grow to 3 processors: it was made for at most 2");
        assert!(growth.check(1, 6 * SECTION + 1).is_err());
    }

    #[test]
    fn a_machine_has_no_more_modules_than_fit() {
        let mut machine = machine(Path::new("/run/m"));
        assert_eq!(modules(&machine, 16), 2);
        machine.max_memory = 64 << 30;
        assert_eq!(modules(&machine, 16), 16);
        machine.max_memory = machine.memory;
        assert_eq!(modules(&machine, 16), 0);
    }
}
