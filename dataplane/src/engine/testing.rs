//! What engine and command tests share.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use io_uring::IoUring;
use libc::iovec;

use super::file::FileEngine;
use super::{AlignedBuffer, Cursor, Engine, Io};

pub use crate::random::Random;

impl Random {
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// A guest's buffer: page-aligned memory, cut into pieces.
pub struct Guest {
    memory: AlignedBuffer,
    pub iov: Vec<iovec>,
}

impl Guest {
    /// `cuts`: where pieces end, ascending.
    pub fn new(content: &[u8], cuts: &[usize]) -> Self {
        let mut memory = AlignedBuffer::zeroed(content.len().max(1)).unwrap();
        memory[..content.len()].copy_from_slice(content);
        let mut iov = Vec::new();
        let mut start = 0;
        for &cut in cuts.iter().chain([&content.len()]) {
            iov.push(iovec {
                iov_base: memory[start..cut].as_mut_ptr().cast(),
                iov_len: cut - start,
            });
            start = cut;
        }
        Self { memory, iov }
    }

    pub fn zeroed(len: usize) -> Self {
        Self::new(&vec![0; len], &[])
    }

    pub fn content(&self, len: usize) -> Vec<u8> {
        let mut copy = vec![0; len.min(self.memory.len())];
        let got = Cursor::new(&self.iov).read(&mut copy);
        copy.truncate(got);
        copy
    }
}

pub fn open(path: &Path, flags: i32) -> io::Result<OwnedFd> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)
        .map(OwnedFd::from)
}

/// A file engine on a new sparse file in `dir`; direct if asked for.
pub fn file_engine(dir: &Path, size: u64, direct: bool) -> FileEngine {
    let path = dir.join("disk");
    File::create(&path).unwrap().set_len(size).unwrap();
    let direct_fd = direct.then(|| open(&path, libc::O_DIRECT).unwrap());
    FileEngine::new(open(&path, 0).unwrap(), direct_fd, size, true, false).unwrap()
}

/// A loop device, detached when dropped.
pub struct LoopDevice(pub PathBuf);

impl LoopDevice {
    /// `None`, with a word about it, where the host has none for us.
    pub fn new(file: &Path, block_size: u32) -> Option<Self> {
        let output = Command::new("losetup")
            .args(["--find", "--show", "--sector-size"])
            .arg(block_size.to_string())
            .arg(file)
            .output();
        match output {
            Ok(output) if output.status.success() => {
                let path = String::from_utf8(output.stdout).unwrap();
                Some(Self(path.trim().into()))
            }
            other => {
                eprintln!("SKIPPED: losetup: {other:?}");
                None
            }
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("-d").arg(&self.0).status();
        assert!(detached.unwrap().success());
    }
}

/// `None`, with a word about it, where the host refuses io_uring.
pub fn uring() -> Option<IoUring> {
    match IoUring::new(8) {
        Ok(ring) => Some(ring),
        Err(error) => {
            eprintln!("SKIPPED: io_uring_setup: {error}");
            None
        }
    }
}

/// Submits the engine's entry and waits for its result; `None` if the engine offers no entry.
pub fn submit(ring: &mut IoUring, engine: &dyn Engine, io: &Io, iov: &[iovec]) -> Option<i32> {
    let entry = engine.sqe(io, iov)?;
    // SAFETY: `iov` and the engine are borrowed until the completion is here.
    unsafe { ring.submission().push(&entry.user_data(7)).unwrap() };
    ring.submit_and_wait(1).unwrap();
    let completion = ring.completion().next().unwrap();
    assert_eq!(completion.user_data(), 7);
    Some(completion.result())
}

/// The way of a worker: now, else by io_uring, else (or if that did not do it) by `run`.
pub fn drive(
    ring: Option<&mut IoUring>,
    engine: &dyn Engine,
    io: &Io,
    iov: &[iovec],
) -> io::Result<u64> {
    if let Some(result) = engine.try_now(io, iov) {
        return result;
    }
    let result = ring.and_then(|ring| submit(ring, engine, io, iov));
    if result.is_some_and(|result| io.completed_by(result)) {
        return Ok(io.len);
    }
    engine.run(io, iov)
}
