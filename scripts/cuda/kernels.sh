# Shared by the nvcc programs beside it; to be sourced, not run.
# shellcheck shell=sh

# absent_kernels LIBRARY: the functions of candle's quantised and mixture-of-experts kernels, none of which an encoder calls,
# as functions that end the program. Runs where cargo runs a build script: in the folder of candle-kernels.
absent_kernels() {
    made=$(mktemp -d)
    {
        echo 'void abort(void);'
        sed -n 's/^ *pub fn \([a-zA-Z0-9_]*\).*/void \1(void) { abort(); }/p' src/ffi.rs
    } >"$made/absent.c"
    cc -c -fPIC -ffunction-sections -w -o "$made/absent.o" "$made/absent.c" && rm -f "$1" && ar rcs "$1" "$made/absent.o"
    made_it=$?
    rm -rf "$made"
    return $made_it
}
