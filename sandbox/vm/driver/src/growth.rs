//! A VM's memory and processors, and how far they can grow.

use crate::check::SECTION;
use crate::error::DriverError;
use crate::vmm::VmPlan;

/// A VM's size. Memory is added in modules, whose number is limited.
#[derive(Debug)]
pub(crate) struct Growth {
    vcpus: u32,
    max_vcpus: u32,
    memory: u64,
    max_memory: u64,
    modules: u64,
    max_modules: u64,
}

/// How many modules `vm` needs slots for, at most `most`.
pub(crate) fn modules(vm: &VmPlan, most: u64) -> u64 {
    ((vm.max_memory - vm.memory) / SECTION).min(most)
}

impl Growth {
    /// The size of a VM that boots, with slots for `modules` modules.
    pub(crate) fn of(vm: &VmPlan, modules: u64) -> Self {
        let VmPlan { vcpus, max_vcpus, memory, max_memory, .. } = *vm;
        Self { vcpus, max_vcpus, memory, max_memory, modules: 0, max_modules: modules }
    }

    /// Rejects more than the VM's maximum.
    pub(crate) fn check(&self, vcpus: u32, memory: u64) -> Result<(), DriverError> {
        if vcpus > self.max_vcpus {
            let most = self.max_vcpus.into();
            return Err(DriverError::TooMuch { asked: vcpus.into(), unit: "processors", most });
        }
        if memory > self.max_memory {
            let most = self.max_memory;
            return Err(DriverError::TooMuch { asked: memory, unit: "bytes", most });
        }
        Ok(())
    }

    /// The size in bytes of the module that brings the VM to `memory` bytes; 0 if it has them.
    pub(crate) fn next_module(&self, memory: u64) -> u64 {
        let missing = memory.saturating_sub(self.memory).div_ceil(SECTION) * SECTION;
        match missing > 0 && self.modules + 1 == self.max_modules {
            // The last module takes all the rest, so that no later growth fails for want of a slot.
            true => self.max_memory - self.memory,
            false => missing,
        }
    }

    /// The VM's memory in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.memory
    }

    /// The number of modules plugged in so far.
    pub(crate) fn modules(&self) -> u64 {
        self.modules
    }

    /// The VM's processors.
    pub(crate) fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// Counts a module of `size` bytes that was plugged in.
    pub(crate) fn got_module(&mut self, size: u64) {
        self.modules += 1;
        self.memory += size;
    }

    /// Sets the number of processors.
    pub(crate) fn got_vcpus(&mut self, vcpus: u32) {
        self.vcpus = vcpus;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::check::tests::vm;

    #[test]
    fn memory_grows_by_sections_and_never_shrinks() {
        let mut vm = vm(Path::new("/run/m"));
        vm.max_memory = 6 * SECTION;
        let mut growth = Growth::of(&vm, modules(&vm, 2));
        assert_eq!(growth.next_module(SECTION), 0);
        assert_eq!(growth.next_module(2 * SECTION), 0);
        assert_eq!(growth.next_module(2 * SECTION + 1), SECTION);
        assert_eq!(growth.next_module(4 * SECTION), 2 * SECTION);
        growth.got_module(SECTION);
        assert_eq!(growth.next_module(3 * SECTION), 0);
        assert_eq!(growth.next_module(3 * SECTION + 1), 3 * SECTION);
        growth.check(2, 6 * SECTION).unwrap();
        let vcpus = growth.check(3, 0).unwrap_err().to_string();
        assert_eq!(vcpus, "the VM cannot grow to 3 processors: its maximum is 2");
        assert!(growth.check(1, 6 * SECTION + 1).is_err());
    }

    #[test]
    fn modules_are_limited() {
        let mut vm = vm(Path::new("/run/m"));
        assert_eq!(modules(&vm, 16), 2);
        vm.max_memory = 64 << 30;
        assert_eq!(modules(&vm, 16), 16);
        vm.max_memory = vm.memory;
        assert_eq!(modules(&vm, 16), 0);
    }
}
