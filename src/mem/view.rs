//! A file that is written while it is read here without a copy: mapped, and its pages are the page cache's. A page that the disk
//! cannot give raises SIGBUS in whoever touches it, which ends a process. Here a handler puts a page of noughts in its place and marks
//! the view as broken, and `see` says so when the reader is done. (systemd reads its journals in this way.) What is broken stays so:
//! the file must then be read by calls, which say of each part what is wrong with it.
//!
//! A SIGBUS of anything else goes to the handler that was there before.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use memmap2::{Advice, MmapOptions, MmapRaw};

/// Views of a process at most.
const MOST: usize = 256;

/// Where a view lies, for the handler.
struct Place {
    is_taken: AtomicBool,
    begin: AtomicUsize,
    end: AtomicUsize,
    is_broken: AtomicBool,
    is_told: AtomicBool,
}

static PLACES: [Place; MOST] = [const {
    Place {
        is_taken: AtomicBool::new(false),
        begin: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        is_broken: AtomicBool::new(false),
        is_told: AtomicBool::new(false),
    }
}; MOST];

/// What a SIGBUS did before, and the bytes of a page.
static BEFORE: OnceLock<(libc::sigaction, usize)> = OnceLock::new();

/// A file of at most so many bytes.
#[derive(Debug)]
pub struct View {
    map: MmapRaw,
    place: usize,
}

impl View {
    /// Maps the first `n_bytes` of a file, which may not be there yet: none may be seen before it is. Fails where the system has no room
    /// among its addresses, and where there are too many views.
    pub fn of(file: &File, n_bytes: u64) -> io::Result<View> {
        handle()?;
        let len = usize::try_from(n_bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let map = MmapOptions::new().len(len).map_raw_read_only(file)?;
        let free = |place: &Place| !place.is_taken.swap(true, Ordering::AcqRel);
        let place = PLACES.iter().position(free).ok_or(io::ErrorKind::QuotaExceeded)?;
        let begin = map.as_ptr() as usize;
        PLACES[place].is_broken.store(false, Ordering::Release);
        PLACES[place].is_told.store(false, Ordering::Release);
        PLACES[place].begin.store(begin, Ordering::Release);
        PLACES[place].end.store(begin + len, Ordering::Release);
        Ok(View { map, place })
    }

    /// Tells the system not to read what lies around a page of this part that is touched.
    pub fn is_read_here_and_there(&self, part: Range<u64>) {
        let len = (part.end - part.start) as usize;
        let _ = self.map.advise_range(Advice::Random, part.start as usize, len);
    }

    /// Begins to bring what lies there from memory to this processor, if it is in memory.
    pub fn expect(&self, at: u64, n_bytes: usize) {
        const LINE: usize = 64;
        let first = self.map.as_ptr().wrapping_add(at as usize);
        for line in (0..n_bytes + first as usize % LINE).step_by(LINE) {
            let line = first.wrapping_add(line);
            // SAFETY: a prefetch reads nothing, even where no memory is, and does not fault.
            #[cfg(target_arch = "x86_64")]
            unsafe {
                std::arch::x86_64::_mm_prefetch(line.cast(), std::arch::x86_64::_MM_HINT_T0);
            }
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            unsafe {
                std::arch::asm!("prfm pldl1keep, [{}]", in(reg) line, options(nostack, preserves_flags, readonly));
            }
            #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
            let _ = line;
        }
    }

    /// Shows the `n_bytes` from the byte `at` on. False where some of them could not be had, now or before: what was shown is then not
    /// all that is in the file. Who writes to them meanwhile changes what is shown.
    pub fn see(&self, at: u64, n_bytes: usize, then: &mut dyn FnMut(&[u8])) -> bool {
        let is_broken = &PLACES[self.place].is_broken;
        let is_within = usize::try_from(at).is_ok_and(|at| at <= self.map.len() && n_bytes <= self.map.len() - at);
        if !is_within || is_broken.load(Ordering::Acquire) {
            return false;
        }
        // SAFETY: within the map, which lives as long as `self`; what a page cannot give reads as noughts. It is written by calls of the
        // system alone, and by those who may write to it when nobody looks.
        then(unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(at as usize), n_bytes) });
        let is_whole = !is_broken.load(Ordering::Acquire);
        if !is_whole && !PLACES[self.place].is_told.swap(true, Ordering::Relaxed) {
            log::warn!("a page of a mapped file could not be had: it is read by calls from now on, which takes longer");
        }
        is_whole
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let place = &PLACES[self.place];
        place.end.store(0, Ordering::Release);
        place.begin.store(0, Ordering::Release);
        place.is_taken.store(false, Ordering::Release);
    }
}

/// From now on a SIGBUS comes here first.
fn handle() -> io::Result<()> {
    static IS_SET: std::sync::Mutex<bool> = std::sync::Mutex::new(false);
    let mut is_set = IS_SET.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if *is_set {
        return Ok(());
    }
    // SAFETY: a `sigaction` of noughts is one; both are filled as sigaction(2) has it. The handler does what signal-safety(7) allows:
    // atomic loads and stores, and calls of the system.
    unsafe {
        let mut before: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut before) != 0 {
            return Err(io::Error::last_os_error());
        }
        // Before the handler, which reads it.
        let _ = BEFORE.set((before, libc::sysconf(libc::_SC_PAGESIZE) as usize));
        let mut own: libc::sigaction = std::mem::zeroed();
        own.sa_sigaction = on_fault as *const () as usize;
        own.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        if libc::sigaction(libc::SIGBUS, &own, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    *is_set = true;
    Ok(())
}

extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some((before, page_bytes)) = BEFORE.get() else { return };
    // SAFETY: the system gives the address with this signal. The page lies in a map of this process, which lives, for who touched it has it;
    // it is read only, and its reader learns that it was replaced.
    unsafe {
        let at = (*info).si_addr() as usize;
        let is_here = |place: &&Place| (place.begin.load(Ordering::Acquire)..place.end.load(Ordering::Acquire)).contains(&at);
        if let Some(place) = PLACES.iter().find(is_here) {
            place.is_broken.store(true, Ordering::Release);
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            let page = (at & !(page_bytes - 1)) as *mut libc::c_void;
            if libc::mmap(page, *page_bytes, libc::PROT_READ, flags, -1, 0) != libc::MAP_FAILED {
                return;
            }
        }
        if before.sa_flags & libc::SA_SIGINFO != 0 {
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                std::mem::transmute(before.sa_sigaction);
            handler(signal, info, context);
        } else {
            // What touched the page touches it again, and this time the process ends.
            libc::sigaction(signal, before, std::ptr::null_mut());
        }
    }
}

#[cfg(test)]
#[path = "../../tests/unit/mem/view.rs"]
mod tests;
