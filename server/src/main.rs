//! The binary `lattice`.

/// Arrow buffers are allocated and freed on different threads all the time; this allocator is made for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    lattice_server::run()
}
