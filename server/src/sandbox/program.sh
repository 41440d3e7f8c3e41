# Writes the files that come first on stdin, compiles, and becomes the program, which has the rest.
#
#   program.sh FILE_KIB PROCESSES COMPILE_SECONDS DATA_KIB CPU_SECONDS (NAME BYTES)... --
#     COMPILER_WORDS COMPILER... PROGRAM...
#
# The first line on stderr is ours: "ready", or "rejected" with what the compiler said after it.
set -euf
ulimit -c 0 -n 256 -f "$1" -u "$2" -t "$3"
data=$4 cpu=$5
shift 5

while [ "$1" != -- ]; do
  head -c "$2" > "$1"
  shift 2
done

compiler=("${@:3:$2}")
shift $((2 + $2))
if ((${#compiler[@]})); then
  if ! "${compiler[@]}" > .compiler 2>&1 < /dev/null; then
    echo rejected >&2
    head -c 4096 .compiler >&2
    exit 1
  fi
  rm .compiler
fi

ulimit -d "$data"
ulimit -S -t "$cpu"
ulimit -H -t $((cpu + 1))
echo ready >&2
exec "$@"
