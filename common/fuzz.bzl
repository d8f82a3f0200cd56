"""A libFuzzer target: `bazel build --config=fuzz` with Clang; tests/fuzz.sh runs them all."""

def fuzz_target(name, deps, srcs = None):
    native.cc_binary(
        name = name,
        testonly = True,
        srcs = srcs or [name + ".cc"],
        linkopts = ["-fsanitize=fuzzer"],  # brings main()
        tags = ["fuzz", "manual"],
        deps = deps,
    )
