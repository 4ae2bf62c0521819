#!/usr/bin/env bash
# Keeps the history of all nights on a branch of its own, quant-harness-history, checked out as the folder history/.
#
#   history.sh restore         makes history/ from origin's branch, or an empty one where there is none yet
#   history.sh keep [REMOTE]   commits what the night has added, and pushes it (origin)
set -euo pipefail
branch=quant-harness-history
case ${1:-} in
  restore)
    if git fetch --quiet --depth 1 origin "+refs/heads/$branch:refs/remotes/origin/$branch" 2> /dev/null; then
      git worktree add --quiet --force -B "$branch" history "origin/$branch"
    elif git ls-remote --exit-code --heads origin "$branch" > /dev/null; then
      echo "the branch $branch is there and could not be fetched; nothing is measured without its history" >&2
      exit 2
    else
      git worktree add --quiet --force --detach history
      git -C history checkout --quiet --orphan "$branch"
      git -C history rm -r -f --quiet .
    fi
    ;;
  keep)
    git -C history add --all
    if ! git -C history diff --cached --quiet; then
      git -C history -c user.name=quant-harness -c user.email=quant-harness@localhost commit --quiet -m "Night of $(date -u +%F)"
    fi
    git -C history push --quiet "${2:-origin}" "HEAD:refs/heads/$branch"
    ;;
  *)
    echo "say: history.sh restore, or history.sh keep [REMOTE]" >&2
    exit 2
    ;;
esac
