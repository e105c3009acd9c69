#!/usr/bin/env bash
# Retrains the packaged checkpoints, or those that are named, from packaged data.
#
#   checkpoints/retrain.sh                       those of pictures, about a quarter of an hour on
#                                                2 CPU cores
#   checkpoints/retrain.sh instella-photos-nano  one
#   checkpoints/retrain.sh encodec-speech-nano   a codec of speech, minutes; the prompts come by
#                                                apt (pip install "tokzoo[audio,g722]")
#
# Afterwards catalog.toml needs the new SHA-256 values, which are printed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
runs="${RUNS:-runs/checkpoints}"
names=("$@")
[ ${#names[@]} -gt 0 ] || names=(
  instella-photos-nano instella-digits-nano
  instella-digits-ar-nano llamagen-digits-nano maskgit-vqgan-photos-nano
)
retrain() {  # name, system, then what tokzoo train takes
  local name="$1" system="$2"
  shift 2
  tokzoo train "$system" --out "$runs/$name" "$@"
  tokzoo export "$runs/$name" --out "checkpoints/$name.safetensors" --weights-licence "$licence"
}
prompts() {  # the speech prompts in the cache, unless they are there; weights bear their licence
  licence=CC-BY-SA-3.0
  [ -e "${TOKZOO_CACHE:-$HOME/.cache/tokzoo}/data/speech-prompts" ] || tokzoo data prepare speech-prompts
}
digits=checkpoints/instella-digits-nano.safetensors
for name in "${names[@]}"; do
  licence=Apache-2.0
  case "$name" in
    instella-photos-nano) retrain "$name" instella-t2i --recipe nano --steps 4000 --save-every 1000 ;;
    instella-digits-nano) retrain "$name" instella-t2i --recipe nano-digits --steps 6000 --save-every 2000 ;;
    instella-digits-ar-nano)
      retrain "$name" instella-t2i --recipe nano-ar --tokenizer "$digits" ;;
    llamagen-digits-nano) retrain "$name" maskgit --recipe nano-tokenizer ;;
    maskgit-vqgan-photos-nano)
      retrain "$name" maskgit-vqgan --recipe nano --steps 2000 --save-every 1000 ;;
    *-speech-nano) prompts; retrain "$name" "${name%-speech-nano}" --recipe speech-nano ;;
    *) echo "retrain.sh: no packaged checkpoint is called $name." >&2; exit 2 ;;
  esac
done
sha256sum checkpoints/*.safetensors
