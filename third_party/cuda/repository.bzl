"""@cuda: the CUDA toolkit of this machine, or its absence. Looks in $CUDA_HOME, /usr/local/cuda, and beside the nvcc on $PATH."""

_PRESENT = """package(default_visibility = ["//visibility:public"])

# True where the build was asked for CUDA (--config=cuda) and a toolkit is here.
config_setting(name = "enabled", define_values = {{"cuda": "yes"}})

# What host code includes; nvcc has its own paths. CCCL is left to .cu files: thousands of headers.
cc_library(
    name = "headers",
    hdrs = glob(["include/*.h", "include/*.hpp", "include/crt/**"]),
    includes = ["include"],
)

# A binary takes the static runtime, and starts where no toolkit is. Tests take the shared one: the symbols of the other
# are hidden, so that a test's shared libraries of kernels could not have them of it. The driver is found at run time
# (cudaGetDriverEntryPoint).
cc_import(
    name = "cudart",
    shared_library = "lib/{cudart}",
    static_library = "lib/libcudart_static.a",
)

cc_library(
    name = "runtime",
    linkopts = ["-ldl", "-lrt", "-lpthread"],
    deps = [":cudart", ":headers"],
)

cc_library(
    name = "cublas_lt",
    linkopts = ["-L{home}/lib64", "-lcublasLt", "-Wl,-rpath,{home}/lib64"],
    deps = [":runtime"],
)

cc_library(
    name = "nccl",
    linkopts = ["-L{home}/lib64", "-lnccl", "-Wl,-rpath,{home}/lib64"],
    deps = [":runtime"],
)
"""

_ABSENT = """package(default_visibility = ["//visibility:public"])

config_setting(name = "enabled", define_values = {"cuda": "there is no nvcc"})

[cc_library(name = name) for name in ["headers", "runtime", "cublas_lt", "nccl"]]
"""

def _home(ctx):
    candidates = [ctx.os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    nvcc = ctx.which("nvcc")
    if nvcc:
        candidates.append(str(nvcc.realpath.dirname.dirname))
    for home in candidates:
        if home and ctx.path(home + "/bin/nvcc").exists:
            return home
    return None

# libcudart.so.13, as what links it will look for it.
def _cudart(ctx, home):
    names = [f.basename for f in ctx.path(home + "/lib64").readdir()]
    names = [n for n in names if n.startswith("libcudart.so.") and n[len("libcudart.so."):].isdigit()]
    if not names:
        fail("%s/lib64 has no libcudart.so.NUMBER" % home)
    return names[0]

def _cuda_repository_impl(ctx):
    home = _home(ctx)
    if home:
        ctx.symlink(home + "/include", "include")
        cudart = _cudart(ctx, home)
        for name in [cudart, "libcudart_static.a"]:
            ctx.symlink(home + "/lib64/" + name, "lib/" + name)
    ctx.file("BUILD", _PRESENT.format(home = home, cudart = cudart) if home else _ABSENT)
    ctx.file("toolkit.bzl", "NVCC = %s\n" % (repr(home + "/bin/nvcc") if home else "None"))

cuda_repository = repository_rule(
    implementation = _cuda_repository_impl,
    environ = ["CUDA_HOME", "PATH"],
    local = True,
)
