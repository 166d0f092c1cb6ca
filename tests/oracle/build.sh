# The classic builder. "docker build" without a plugin is the same; DOCKER_BUILDKIT says so.
## tutorial
mkdir -p cow && printf 'FROM debian:latest\nMAINTAINER someone <a@b.c>\nRUN echo moo > /cow\nENTRYPOINT ["/bin/cat"]\nCMD ["/cow"]\n' > cow/Dockerfile
DOCKER_BUILDKIT=0 docker build -t amount/cowsay cow
DOCKER_BUILDKIT=0 docker build -t amount/cowsay -t amount/cowsay:two cow
docker run --rm amount/cowsay
docker history --format '{{.CreatedBy}} {{.Comment}}' amount/cowsay
docker inspect -f '{{json .Config.Cmd}} {{json .Config.Entrypoint}} {{.Author}} {{len .RootFS.Layers}}' amount/cowsay
docker images --format '{{.Repository}}:{{.Tag}}' | sort
DOCKER_BUILDKIT=0 docker build -q cow | wc -c
docker rmi amount/cowsay amount/cowsay:two | wc -l
docker images -a --format '{{.Repository}}:{{.Tag}}' | sort
## instructions
mkdir -p all/dir/sub && echo one > all/one.txt && echo two > all/two.txt && echo deep > all/dir/sub/deep && chmod 640 all/two.txt && ln -sf one.txt all/link && tar -C all -cf all/some.tar one.txt dir && chmod 750 all/dir
printf 'ARG BASE=busybox\nFROM ${BASE}\nARG WHO=nobody\nARG GIVEN\nENV A=1 B="two words"\nENV C three four\nLABEL a=$A "b b"="x"\nWORKDIR /w\nWORKDIR sub\nRUN echo $WHO $GIVEN $A $B $C; pwd\nCOPY one.txt .\nCOPY one.txt two.txt /several/\nCOPY *.txt dir /glob/\nCOPY dir /dir\nCOPY link /linked\nCOPY --chown=1:2 dir/sub /owned\nADD some.tar /unpacked\nADD some.tar /unpacked2/\nUSER 5:6\nRUN id -u; id -g\nUSER root\nEXPOSE 80 443/udp 9000-9001\nVOLUME /vol ["x"]\nVOLUME ["/v1","/v2"]\nSTOPSIGNAL SIGINT\nSHELL ["/bin/sh","-e","-c"]\nHEALTHCHECK --interval=5s --retries=2 CMD true\nCMD echo $A\nENTRYPOINT ["sh","-c"]\nONBUILD RUN echo triggered\n' > all/Dockerfile
DOCKER_BUILDKIT=0 docker build --build-arg GIVEN=given --build-arg UNUSED=1 --label own=label -t all all
DOCKER_BUILDKIT=0 docker build --build-arg GIVEN=given --build-arg UNUSED=1 --label own=label -t all all
docker inspect -f '{{json .Config}}' all
docker history --no-trunc --format '{{.CreatedBy}}' all
docker run --rm --entrypoint sh all -c 'cd /; find w several glob dir linked owned unpacked unpacked2 ! -type d | sort | xargs stat -c "%n %a %u %g %s"'
docker run --rm --entrypoint sh all -c 'cd /; find w several glob dir owned unpacked unpacked2 -type d | sort | xargs stat -c "%n %a %u %g"'
printf 'FROM all\nRUN echo upon\n' > all/Two
DOCKER_BUILDKIT=0 docker build -f all/Two all
DOCKER_BUILDKIT=0 docker build --no-cache -f all/Two all
DOCKER_BUILDKIT=0 docker build --rm=false -f all/Two --no-cache all
docker ps -aq | wc -l
## stages
mkdir -p stages && echo x > stages/f
printf 'FROM busybox AS first\nRUN echo built > /built\nFROM first AS second\nCOPY f /f\nFROM scratch\nCOPY --from=first /built /bin/busybox /\nCOPY --from=1 /f /f\nCOPY --from=busybox /etc/pass* /etc/\nCMD ["/busybox","cat","/built"]\n' > stages/Dockerfile
DOCKER_BUILDKIT=0 docker build -t staged stages
docker run --rm staged
docker export $(docker create staged) | tar t | grep -v '^dev\|^proc\|^sys\|^etc/[^p]' | sort
DOCKER_BUILDKIT=0 docker build --target FIRST stages
DOCKER_BUILDKIT=0 docker build --target 1 stages
DOCKER_BUILDKIT=0 docker build --target nope stages
printf 'FROM busybox\nCOPY --from=0 /x /x\n' | DOCKER_BUILDKIT=0 docker build -
printf 'FROM busybox\nCOPY --from=5 /x /x\n' | DOCKER_BUILDKIT=0 docker build -
printf 'FROM busybox AS a\nFROM busybox\nCOPY --from=a /nope /x\n' | DOCKER_BUILDKIT=0 docker build -
printf 'FROM scratch\n' | DOCKER_BUILDKIT=0 docker build -
printf 'FROM scratch\nENV a=b\nLABEL c=d\n' | DOCKER_BUILDKIT=0 docker build -
printf 'FROM busybox AS a\nFROM busybox AS a\n' | DOCKER_BUILDKIT=0 docker build -
## errors
mkdir -p bad && echo x > bad/f && echo y > bad/g
printf 'FROM busybox\nRUN false\n' > bad/Dockerfile; DOCKER_BUILDKIT=0 docker build bad
docker ps -a --format '{{.Command}} {{.Status}}'
printf 'FROM busybox\nRUN echo err >&2; exit 7\n' > bad/Dockerfile; DOCKER_BUILDKIT=0 docker build --force-rm bad
printf 'FROM busybox\nRUN ["nope"]\n' > bad/Dockerfile; DOCKER_BUILDKIT=0 docker build --force-rm bad
printf 'FROM busybox\nCOPY nope /\n' > bad/Dockerfile; DOCKER_BUILDKIT=0 docker build bad
printf 'FROM busybox\nCOPY f g /dest\n' > bad/Dockerfile; DOCKER_BUILDKIT=0 docker build bad
printf 'FROM busybox\nCOPY ../f /dest\n' > bad/Dockerfile; DOCKER_BUILDKIT=0 docker build bad
printf 'FROM busybox\nCOPY no* /\n' > bad/Dockerfile; DOCKER_BUILDKIT=0 docker build bad
printf 'FROM busybox\nCOPY --chown=nope f /\n' > bad/Dockerfile; DOCKER_BUILDKIT=0 docker build bad
printf 'FROM busybox\nCOPY --chmod=600 f /\n' > bad/Dockerfile; DOCKER_BUILDKIT=0 docker build bad
printf 'FROM busybox\nRUN --mount=type=cache,target=/x true\n' > bad/Dockerfile; DOCKER_BUILDKIT=0 docker build bad
printf 'FROM busybox\nCOPY http://localhost:1/x /\n' > bad/Dockerfile; DOCKER_BUILDKIT=0 docker build bad
printf 'FROM busybox\nNOPE x\n' > bad/Dockerfile; DOCKER_BUILDKIT=0 docker build bad
printf 'RUN x\n' > bad/Dockerfile; DOCKER_BUILDKIT=0 docker build bad
printf 'FROM ${NOPE}\n' > bad/Dockerfile; DOCKER_BUILDKIT=0 docker build bad
printf 'FROM UPPER\n' > bad/Dockerfile; DOCKER_BUILDKIT=0 docker build bad
printf 'FROM busybox\nEXPOSE nope\n' > bad/Dockerfile; DOCKER_BUILDKIT=0 docker build bad
printf 'FROM busybox\nSTOPSIGNAL nope\n' > bad/Dockerfile; DOCKER_BUILDKIT=0 docker build bad
printf 'FROM busybox\nUSER nope\nRUN true\n' > bad/Dockerfile; DOCKER_BUILDKIT=0 docker build --force-rm bad
DOCKER_BUILDKIT=0 docker build -f nope bad
DOCKER_BUILDKIT=0 docker build -t UPPER bad
DOCKER_BUILDKIT=0 docker build -q -t bad bad
printf 'FROM busybox\nRUN echo $HOME; echo err >&2\n' > bad/Dockerfile; DOCKER_BUILDKIT=0 docker build -q bad | wc -c
printf 'FROM busybox\nRUN exit 5\n' > bad/Dockerfile; DOCKER_BUILDKIT=0 docker build -q --force-rm bad
## ignored
mkdir -p ign && echo a > ign/a && echo b > ign/b && printf 'b\nDockerfile\n' > ign/.dockerignore && printf 'FROM busybox\nCOPY . /ctx/\nRUN ls -A /ctx\n' > ign/Dockerfile
DOCKER_BUILDKIT=0 docker build ign
