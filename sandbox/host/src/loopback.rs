//! Loop devices (loop(4)), for images that a snapshotter wants mounted.

#![allow(unsafe_code, reason = "the loop driver's ioctls have no wrapper")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// `linux/loop.h`.
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// How often another process may take a free device first before the search fails.
const TRIES: usize = 64;

/// `struct loop_info64`.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// An open loop device. The kernel frees it when it is neither open nor mounted.
#[derive(Debug)]
pub(crate) struct Loop {
    path: PathBuf,
    _open: File,
}

impl Loop {
    /// Attaches the file `image`. Needs Linux 5.8.
    pub(crate) fn attach(image: &Path, read_only: bool) -> io::Result<Self> {
        let backing = OpenOptions::new().read(true).write(!read_only).open(image)?;
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        let mut config = config(&backing, read_only)?;
        for _ in 0..TRIES {
            // SAFETY: the call takes no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            let path = PathBuf::from(format!("/dev/loop{}", Errno::result(number)?));
            let open = OpenOptions::new().read(true).write(!read_only).open(&path)?;
            // SAFETY: `config` is laid out as the kernel's and lives through the call.
            let done = unsafe { libc::ioctl(open.as_raw_fd(), LOOP_CONFIGURE, &raw mut config) };
            match Errno::result(done) {
                Ok(_) => return Ok(Self { path, _open: open }),
                Err(Errno::EBUSY) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(Errno::EBUSY.into())
    }

    /// The device node.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn config(backing: &File, read_only: bool) -> io::Result<Config> {
    let read_only = if read_only { LO_FLAGS_READ_ONLY } else { 0 };
    Ok(Config {
        fd: u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?,
        block_size: 0,
        info: Info {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            sizelimit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: LO_FLAGS_AUTOCLEAR | read_only,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    })
}
